"""Where captions go and come from: CSV, Parquet and stdout beside JSON Lines; several folders; more kinds of files."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from captioned import CAPTIONS, PLACES, RED, TEAL, lines, picture_folder, texts, wanted
from conftest import plain_environment
from PIL import Image
from pyarrow import parquet
from test_captions_file import SLOWLY
from tinygptv.runtime import Cancellation, CancellationError, TinyGPTV
from tinygptv.runtime.boxes import Box, Region
from tinygptv.runtime.captioning import Captioned, caption_each
from tinygptv.runtime.cli import main
from tinygptv.runtime.commands import captions
from tinygptv.runtime.commands.caption_record import Caption
from tinygptv.runtime.folder import Picture, sidecar_ending

TRIANGLE = [{"phrase": "red triangle", "boxes": [[16, 5, 39, 25]]}]
ODD = 'a "quoted", word;\r\nand = another line\x85 é'
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "Bilder é")


def rows(output: Path) -> list[dict[str, Any]]:
    """All captions, as other programs read them."""
    if output.suffix == ".parquet":
        return parquet.read_table(output).to_pylist()
    if output.suffix == ".jsonl":
        return lines(output)
    with output.open(encoding="utf-8", newline="") as file:
        return [
            row | {"size": int(row["size"]), "mtime": float(row["mtime"]), "regions": json.loads(row["regions"])}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(params=["jsonl", "csv", "parquet"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"captions.{request.param}"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that the model was asked about."""
    names: list[str] = []
    encode = TinyGPTV.encode_image

    def noting(model: TinyGPTV, image: Any, **named: Any) -> Any:
        names.append(Path(image).name)
        return encode(model, image, **named)

    monkeypatch.setattr(TinyGPTV, "encode_image", noting)
    return names


# Forms


def test_each_form_holds_the_same(folder: Path, output: Path, asked: list[str], tmp_path: Path) -> None:
    """And goes on from what it holds."""
    for count in (4, 0):
        asked.clear()
        assert main(["caption", str(folder), "-o", str(output)]) == 0
        assert len(asked) == count
    assert main(["caption", str(folder), "-o", str(output), "--question", "[detection] triangle"]) == 0
    found = rows(output)
    assert {row["file"]: row["text"] for row in found[:4]} == wanted(PLACES)
    assert {row["model"] for row in found} == {"demo"} and {row["folder"] for row in found} == {str(folder)}
    assert [row["regions"] for row in found[:4]] == [[]] * 4
    assert [row["regions"] for row in found[4:] if row["file"] == "c.png"] == [TRIANGLE]
    shutil.copy(RED, folder / "a.png")
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert rows(output)[:8] == found and rows(output)[8]["text"] == "a red triangle"
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, output.name}  # nothing is left beside it


def test_odd_texts_come_back(output: Path) -> None:
    """Through this command's reading, and through other programs'."""
    region = Region(ODD, (Box(1, 2, 3, 4), Box(5, 6, 7, 8)))
    texts = dict.fromkeys(("folder", "model", "bundle", "question", "text", "finish_reason"), ODD)
    caption = Caption(file="写真.png", size=2**40, mtime=1700000000.1234567, regions=(region,), **texts)
    other = Caption(file="b.png", size=0, mtime=0.5, regions=(Region(None, (Box(0, 0, 1, 1),)),), **texts)
    for each in (caption, other):
        with captions.open_captions(output) as kept:
            kept.add(each)
    with captions.open_captions(output) as kept:
        assert kept.find(Picture(ODD, "b.png", 0, 0.5), ODD, ODD) == other
        assert kept.find(Picture(ODD, "写真.png", 2**40, 1700000000.1234567), ODD, ODD) == caption
    first, second = rows(output)
    assert first["text"] == ODD and first["regions"][0]["phrase"] == ODD and first["size"] == 2**40
    assert second["regions"] == [{"phrase": None, "boxes": [[0, 0, 1, 1]]}]


@pytest.mark.parametrize("left", [3, 60, 75, 140, -1])
def test_csv_that_was_cut(left: int, folder: Path, tmp_path: Path, asked: list[str]) -> None:
    """A kill while a record was written costs that record, wherever it was cut; the header comes with the first."""
    output = tmp_path / "captions.csv"
    question = ["--question", "[detection] triangle", "--batch-size", "1"]
    assert main(["caption", str(folder), "-o", str(output), *question]) == 0
    whole = output.read_bytes()
    header, *records = whole.splitlines(keepends=True)
    asked.clear()
    output.write_bytes((header + records[0])[:left])
    assert main(["caption", str(folder), "-o", str(output), *question]) == 0
    assert output.read_bytes() == whole and len(asked) == 4
    asked.clear()
    output.write_bytes(header + b"".join(records[:-1]) + records[-1][: min(left, len(records[-1]) - 1)])
    assert main(["caption", str(folder), "-o", str(output), *question]) == 0
    assert output.read_bytes() == whole and len(asked) == 1


def test_csv_cut_within_a_text_of_two_lines(tmp_path: Path) -> None:
    output = tmp_path / "captions.csv"
    texts = dict.fromkeys(("folder", "model", "bundle", "question", "text", "finish_reason"), "one\ntwo")
    caption = Caption(file="a.png", size=1, mtime=1.5, regions=(), **texts)
    with captions.open_captions(output) as kept:
        kept.add(caption)
    whole = output.read_bytes()
    for length in range(len(whole)):
        output.write_bytes(whole[:length])
        with captions.open_captions(output) as kept:
            assert kept.find(Picture("one\ntwo", "a.png", 1, 1.5), "one\ntwo", "one\ntwo") is None
            kept.add(caption)
        assert output.read_bytes() == whole


@pytest.mark.parametrize("content", [b"name,age\r\nme,3\r\n", b"file;folder\r\n", b"PAR1 and so on PAR1", b"\xff"])
def test_a_file_of_something_else_is_left_alone(
    content: bytes, folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.write_bytes(content)
    assert main(["caption", str(folder), "-o", str(output)]) == 1
    assert "expected its earlier output, or a new file" in capsys.readouterr().err
    assert output.read_bytes() == content


def test_another_table_is_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow

    output = tmp_path / "captions.parquet"
    parquet.write_table(pyarrow.table({"file": ["a.png"], "score": [0.5]}), output)
    before = output.read_bytes()
    assert main(["caption", str(folder), "-o", str(output)]) == 1
    assert f"{output} holds no captions that this command wrote" in capsys.readouterr().err
    assert output.read_bytes() == before


@posix
def test_a_killed_run_to_parquet(folder: Path, tmp_path: Path, asked: list[str]) -> None:
    """What was complete is found by the next run, though there was no table yet."""
    output, beside = tmp_path / "captions.parquet", tmp_path / ".captions.parquet.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "caption", str(folder), "-o", str(output), "--batch-size", "1"],
        stderr=subprocess.DEVNULL,
        env=plain_environment(tmp_path),
    )
    while not beside.exists() or beside.read_bytes().count(b"\n") < 2:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    done = beside.read_bytes().count(b"\n")
    assert not output.exists()
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert len(asked) == 4 - done
    assert {row["file"]: row["text"] for row in rows(output)} == wanted(PLACES) and len(rows(output)) == 4
    assert not beside.exists()


def test_an_interrupted_run_to_parquet(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a table of what was complete."""
    output = tmp_path / "captions.parquet"
    keep = captions.Captions.add

    def interrupting(kept: captions.Captions, caption: Caption) -> None:
        keep(kept, caption)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(captions.Captions, "add", interrupting)
        assert main(["caption", str(folder), "-o", str(output)]) == 130
    assert len(rows(output)) == 1
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert len(rows(output)) == 4


def test_a_table_that_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    """The captions are kept beside it; the same command makes the table of them."""
    output = tmp_path / "captions.parquet"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(captions, "write_table", full)
        assert main(["caption", str(folder), "-o", str(output)]) == 1
    said = capsys.readouterr().err
    assert f"{output} cannot be written: {os.strerror(errno.ENOSPC)}; its captions are in" in said
    assert "run the same command again to continue" in said
    assert not output.exists()
    asked.clear()
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert asked == [] and len(rows(output)) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have Unicode names only")
def test_a_name_that_is_no_unicode(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON and CSV carry it, and find it again; Parquet cannot, and says so."""
    shutil.copy(TEAL, os.fsencode(folder) + b"/z\xff.png")
    for number in range(2):
        status = main(["caption", str(folder), "-o", str(output)])
        said = capsys.readouterr().err
        if output.suffix == ".parquet":
            assert status == 1 and "has a name that is not Unicode" in said and len(rows(output)) == 4
        else:
            assert status == 0 and f"{[5, 0][number]} captioned, {[0, 5][number]} done before" in said


def test_an_ending_that_is_not_known(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(folder), "-o", str(tmp_path / "captions.xlsx")]) == 1
    assert "ends in .xlsx; expected .jsonl, .csv or .parquet" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder]


def test_without_pyarrow(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tinygptv.runtime.commands.options.find_spec", lambda name: None)
    assert main(["caption", str(folder), "-o", str(tmp_path / "captions.parquet")]) == 1
    assert '[parquet]"' in capsys.readouterr().err


def test_stdout(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object a line, for a pipe; nothing is written, and nothing known of earlier runs."""
    for _ in range(2):
        assert main(["caption", str(folder), "-o", "-"]) == 0
        out = capsys.readouterr().out
        assert {row["file"]: row["text"] for row in map(json.loads, out.splitlines())} == wanted(PLACES)
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(SystemExit) as left:
        main(["caption", str(folder), "-o", "-", "--json"])
    assert left.value.code == 2


@posix
def test_a_reader_that_leaves(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinygptv.runtime.cli", "caption", str(folder), "-o", "-", "--batch-size", "1"]
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        command, stdout=theirs, stderr=subprocess.PIPE, env=plain_environment(tmp_path), timeout=60, check=False
    )
    os.close(theirs)
    assert done.returncode == 1 and b"Traceback" not in done.stderr


# Several folders


def test_several_folders(folder: Path, tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Files of one name are told apart by their folder; a folder within another is read once."""
    other, output = tmp_path / "other", tmp_path / "captions.jsonl"
    other.mkdir()
    shutil.copy2(folder / "a.png", other / "a.png")  # the same size and time
    shutil.copy(RED, other / "c.png")
    places = [str(folder), str(other), str(folder / "b")]
    assert main(["caption", *places, "-o", str(output), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["folders"], summary["pictures"]) == (places, 6)
    assert {(row["folder"], row["file"]) for row in lines(output)} == {
        *((str(folder), name) for name in PLACES),
        *((str(other), name) for name in ("a.png", "c.png")),
    }
    asked.clear()
    assert main(["caption", *places[::-1][1:], "-o", str(output)]) == 0
    assert asked == []


def test_a_folder_that_was_moved(folder: Path, tmp_path: Path, output: Path, asked: list[str]) -> None:
    """Or is named in another way, has its captions still."""
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    folder.rename(tmp_path / "moved")
    asked.clear()
    assert main(["caption", str(tmp_path / "moved"), "-o", str(output)]) == 0
    assert asked == [] and len(rows(output)) == 4


def test_sidecars_of_several_folders(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(RED, other / "a.png")
    assert main(["caption", str(folder), str(other), "-o", str(tmp_path / "c.jsonl"), "--sidecar"]) == 0
    assert (folder / "a.txt").read_text() == "a teal circle\n" and (other / "a.txt").read_text() == "a red triangle\n"


def test_names_of_a_question() -> None:
    assert sidecar_ending("[caption]", "[caption]") == ".txt"
    one, other = (sidecar_ending(question, "[caption]") for question in ("What is it?", "What is it!"))
    assert one.startswith(".what-is-it-") and one.endswith(".txt") and one != other
    assert len(sidecar_ending("word " * 100, "")) < 60
    assert "/" not in sidecar_ending("a/b\\c:d", "") and sidecar_ending("??", "").count(".") == 2


# Kinds of files


def test_kinds_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A phone's and a camera's pictures are read; what cannot be is reported."""
    pillow_heif = pytest.importorskip("pillow_heif")
    folder, output = tmp_path / "pictures", tmp_path / "captions.jsonl"
    folder.mkdir()
    picture = Image.open(RED).convert("RGB").resize((256, 256))
    pillow_heif.from_pillow(picture).save(folder / "phone.HEIC", quality=90)
    picture.save(folder / "two.mpo", save_all=True, append_images=[picture])
    picture.save(folder / "moving.apng", format="PNG", save_all=True, append_images=[picture])
    (folder / "new.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    assert main(["caption", str(folder), "-o", str(output)]) == 1
    assert texts(output) == dict.fromkeys(["moving.apng", "phone.HEIC", "two.mpo"], CAPTIONS[RED])
    assert "new.jxl (42 bytes) is a JPEG XL picture, which tinygptv does not read" in capsys.readouterr().err
    assert ".heic" not in Image.registered_extensions()  # the host program's Pillow is as it was


def test_heic_is_turned_upright(tmp_path: Path) -> None:
    """As a phone writes it, by its orientation."""
    pillow_heif = pytest.importorskip("pillow_heif")
    from tinygptv.runtime.vision.image import open_image

    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("red", (0, 0, 16, 16))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(turned).save(tmp_path / "phone.heic", quality=100, exif=exif.tobytes())
    found = open_image(tmp_path / "phone.heic")
    assert found.size == (64, 32)
    assert found.getpixel((4, 4))[1] < 60 and min(found.getpixel((60, 4))) > 200


def test_heic_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with TinyGPTV.load() as model, pytest.raises(Exception, match=r"is a HEIC picture.*\[heif\]"):
        model.encode_image(tmp_path / "phone.heic")


# The pure function


def test_caption_each(tmp_path: Path) -> None:
    """Records of whatever a picture may be, with the reason where there is none."""
    pictures = [TEAL, RED.read_bytes(), b"no picture", Image.open(RED), tmp_path / "nowhere.png"]
    with TinyGPTV.load() as model:
        found = dict(caption_each(model, pictures, batch_size=2))
        wanted_texts = [CAPTIONS[TEAL], CAPTIONS[RED], None, CAPTIONS[RED], None]
        assert [found[number].text for number in range(5)] == wanted_texts
        assert found[0] == Captioned("a teal circle", "stop", (), None)
        assert "is text, not a picture" in str(found[2].error) and "does not exist" in str(found[4].error)
        ((_, one),) = caption_each(model, [RED], "[detection] triangle")
        assert one.regions == (Region("red triangle", (Box(16, 5, 39, 25),)),)
        assert list(caption_each(model, [])) == []
        assert [number for number, _ in caption_each(model, [b"", b""])] == [0, 1]
        with pytest.raises(ValueError, match="batch_size"):
            caption_each(model, pictures, batch_size=0)  # at the call


def test_caption_each_is_cancelled() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with TinyGPTV.load() as model, pytest.raises(CancellationError):
        list(caption_each(model, [RED], cancellation=cancellation))
