"""``tinygptv caption --ray``: what one machine says of the same pictures, each of them once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from clusters import LocalCluster, cluster, complaint, s3_server
from conftest import heed_interrupts
from PIL import Image
from pyarrow import dataset
from served import wait_until
from tinygptv.runtime import AnswerOptions, TinyGPTV
from tinygptv.runtime.captioning import Captioned, caption_each
from tinygptv.runtime.cluster import caption_dataset
from tinygptv.runtime.cluster.actor import Asking, CaptionEach, model_in_actor, picture_of
from tinygptv.runtime.cluster.dataset import Actors, captioned, captioned_batches, model_for
from tinygptv.runtime.cluster.node import Model
from tinygptv.runtime.cluster.output import open_output
from tinygptv.runtime.cluster.places import place_of
from tinygptv.runtime.cluster.run import Counts, _computed, datasets, plan, write
from tinygptv.runtime.cluster.sources import find
from tinygptv.runtime.errors import ImageError, TinyGPTVError
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.vision.image import ImageSource

pytest.importorskip("ray.data", reason="needs the extra ray")

IMAGES = Path(__file__).parent / "images"
NAMES = ("red_triangle.png", "teal_circle.png")


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    home = tmp_path_factory.mktemp("cluster")
    with s3_server(home), cluster(home, 2, 2) as running:
        yield running


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What one machine says."""
    with TinyGPTV.load() as model:
        records = caption_each(model, [IMAGES / name for name in NAMES])
        return {NAMES[number]: record.text or "" for number, record in records}


def pictures(folder: Path, count: int) -> Path:
    """As many files as wanted, by turns of two kinds, no two the same."""
    folder.mkdir(parents=True)
    for number in range(count):
        name = NAMES[number % 2]
        with Image.open(IMAGES / name) as image:
            changed = image.convert("RGB")
        changed.putpixel((0, 0), (number % 256, number // 256, 0))
        changed.save(folder / f"{number:04}-{name}")
    return folder


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.dataset(output, format="parquet").to_table().to_pylist()
    return rows


def check(output: Path, folder: Path, answers: dict[str, str], bad: int = 0) -> None:
    """Every picture has one row, with what one machine says."""
    assert not faults_of(output, folder, answers)
    assert sum(row["error"] is not None for row in rows_of(output)) == bad


def faults_of(output: Path, folder: Path, answers: dict[str, str]) -> Counter[str]:
    """How many pictures have no row, more than one, or a row with something else than one machine says."""
    rows, sources = rows_of(output), set(map(str, folder.iterdir()))
    times = Counter(row["source"] for row in rows)
    found = Counter({"missing": len(sources - times.keys()), "twice": len(rows) - len(times)})
    for row in rows:
        expected = (answers.get(Path(row["source"]).name.split("-")[1]), "stop", None, None)
        is_other = row["error"] is None and (row["text"], row["finish_reason"], row["row"], row["name"]) != expected
        found["other captions"] += is_other or row["source"] not in sources
    return +found


def test_once_and_no_more(two_nodes: LocalCluster, tmp_path: Path, answers: dict[str, str]) -> None:
    folder, output = pictures(tmp_path / "Bilder é", 70), tmp_path / "captions out"
    (folder / "0070-bad.png").write_text("no picture")
    done = two_nodes.caption(folder, "-o", output, "--threads", "1")
    assert done.returncode == 1, "one cannot be read"
    assert "0070-bad.png: image bytes (10 bytes) is text, not a picture" in done.stderr
    assert "71 pictures: 70 captioned, 0 done before, 1 failed" in done.stderr
    assert done.stdout == ""
    check(output, folder, answers, bad=1)
    row = next(row for row in rows_of(output) if row["source"].endswith("0000-red_triangle.png"))
    assert row["model"] == "demo" and row["question"] == "[caption]" and len(row["bundle"]) == 12
    assert row["regions"] == []

    parts = sorted(output.iterdir())
    done = two_nodes.caption(folder, "-o", output, "--json")
    assert done.returncode == 0
    counts = {"pictures": 71, "skipped": 71, "captioned": 0, "failed": 0}
    assert counts.items() <= json.loads(done.stdout).items()
    assert sorted(output.iterdir()) == parts

    shutil.copy(IMAGES / NAMES[0], folder / f"0071-{NAMES[0]}")
    shutil.copy(IMAGES / NAMES[1], folder / f"0072-{NAMES[1]}")
    (folder / "0070-bad.png").unlink()
    shutil.copy(IMAGES / NAMES[1], folder / f"0070-{NAMES[1]}")
    done = two_nodes.caption(folder, "-o", output, "--retry-failed", "--actors", "2")
    assert done.returncode == 0
    assert "73 pictures: 3 captioned, 70 done before, 0 failed" in done.stderr
    check(output, folder, answers)


def test_tables_and_shards(two_nodes: LocalCluster, tmp_path: Path, answers: dict[str, str]) -> None:
    from test_cluster_sources import shard, table

    red, teal = ((IMAGES / name).read_bytes() for name in NAMES)
    (tmp_path / "in").mkdir()
    table(tmp_path / "in/bytes.parquet", groups=2, id=[1, 2, 3], photo=[red, None, teal])
    shard(tmp_path / "in.tar", a__png=red, a__txt=b"", b__png=teal)
    (tmp_path / "bad.tar").write_bytes(b"nothing" * 100)
    output = tmp_path / "out"
    sources = [tmp_path / "in/bytes.parquet", tmp_path / "*.tar"]
    done = two_nodes.caption(*sources, "-o", output, "--column", "photo", "--threads", "1", "--actors", "2")
    assert done.returncode == 1
    found = {
        (Path(row["source"]).name, row["row"], row["name"]): row["text"] or row["error"] for row in rows_of(output)
    }
    wrong = found.pop(("bad.tar", 0, None))
    assert "the shard cannot be read" in wrong
    assert found == {
        ("bytes.parquet", 0, None): answers[NAMES[0]],
        ("bytes.parquet", 1, None): "the row has no picture",
        ("bytes.parquet", 2, None): answers[NAMES[1]],
        ("in.tar", 0, "a.png"): answers[NAMES[0]],
        ("in.tar", 1, "b.png"): answers[NAMES[1]],
    }
    done = two_nodes.caption(*sources, "-o", output, "--column", "photo")
    assert "6 pictures: 0 captioned, 6 done before, 0 failed" in done.stderr


def test_an_object_store(two_nodes: LocalCluster, answers: dict[str, str]) -> None:
    store = pytest.importorskip("boto3").client("s3")
    store.create_bucket(Bucket="archive")
    for name in NAMES:
        store.put_object(Bucket="archive", Key=f"photos/2026 é/{name}", Body=(IMAGES / name).read_bytes())
    places = ("s3://archive/photos", "-o", "s3://archive/captions")
    done = two_nodes.caption(*places, "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "2 pictures: 2 captioned, 0 done before, 0 failed" in done.stderr
    file_system, path = place_of("s3://archive/captions")
    found = dataset.dataset(path, filesystem=file_system, format="parquet").to_table().to_pylist()
    assert {row["source"]: row["text"] for row in found} == {
        f"s3://archive/photos/2026 é/{name}": answers[name] for name in NAMES
    }
    store.put_object(Bucket="archive", Key="photos/bad.png", Body=b"nothing")
    process = begun(two_nodes, *places)
    loaded = set()
    while process.poll() is None:
        loaded.update(two_nodes.actors())
        time.sleep(0.05)
    _, said = process.communicate()
    assert "3 pictures: 0 captioned, 2 done before, 1 failed" in said
    assert "s3://archive/photos/bad.png: " in said
    assert len(loaded) == 1, "one picture is left: no model is loaded for nothing, though four have room"


def test_a_dataset(two_nodes: LocalCluster, answers: dict[str, str]) -> None:
    import ray

    ray.init(two_nodes.address, logging_level="ERROR", log_to_driver=False)
    try:
        read = ray.data.read_images(str(IMAGES / NAMES[0]), mode="RGB")
        (row,) = caption_dataset(read, "[vqa] what color is the shape?", keep=True, threads=1).take_all()
        assert (row["text"], row["error"], row["image"].shape[2]) == ("red", None, 3)
        made = ray.data.from_items([{"id": 7, "photo": None}, {"id": 8, "photo": str(IMAGES / NAMES[1])}])
        rows = caption_dataset(made, column="photo", threads=1).take_all()
        assert all(set(row) == {"id", "text", "finish_reason", "regions", "error"} for row in rows)
        found = {row["id"]: (row["text"], row["error"]) for row in rows}
        assert found == {7: (None, "the row has no picture"), 8: (answers[NAMES[1]], None)}
        gone = Model(Path("/nowhere"), "0" * 64, 1, "default")
        make = partial(model_in_actor, gone, Asking("what?", 1, AnswerOptions()))
        lost = captioned(made, make, Actors(1, 1, 1 << 27), 8, column="photo", keep=False, all_at_once=True)
        with pytest.raises(TinyGPTVError, match="/nowhere is no bundle on this node"):
            list(_computed(lost))
    finally:
        ray.shutdown()


@pytest.mark.parametrize("least", [100, 30_000])
def test_actors_get_full_batches(least: int, two_nodes: LocalCluster, tmp_path: Path) -> None:
    """Small pictures or large ones, no two of one size: each call of the model's has as many as it decodes together."""
    for number in range(100):
        (tmp_path / f"{number:03}.png").write_bytes(bytes(least + 997 * number % 7919))

    def caption(images: Iterable[ImageSource]) -> Iterator[tuple[int, Captioned]]:
        count = len(list(images))
        return ((number, Captioned(str(count), "stop", (), None)) for number in range(count))

    assert Counter(captioned_by(caption, two_nodes, tmp_path)) == {"8": 96, "4": 4}


def test_actors_share_the_last_batches(two_nodes: LocalCluster, tmp_path: Path) -> None:
    """However early one of them is there: a batch goes to an actor that has nothing to do."""
    for number in range(16):
        (tmp_path / f"{number}.png").write_bytes(b"a picture")
    begun = tmp_path / "begun"
    begun.mkdir()

    def caption(images: Iterable[ImageSource]) -> Iterator[tuple[int, Captioned]]:
        (begun / str(os.getpid())).touch()
        latest = time.monotonic() + 60
        while len(list(begun.iterdir())) < 2 and time.monotonic() < latest:
            time.sleep(0.05)
        return ((number, Captioned(str(os.getpid()), "stop", (), None)) for number, _ in enumerate(images))

    assert sorted(Counter(captioned_by(caption, two_nodes, tmp_path)).values()) == [8, 8]


def captioned_by(caption: CaptionEach, nodes: LocalCluster, folder: Path) -> list[str]:
    """Texts for all pictures of a folder, by two actors with this model, in batches of eight."""
    import ray

    ray.init(nodes.address, logging_level="ERROR", log_to_driver=False)
    try:
        with open_output(f"{folder}/out", {"model": ""}) as output:
            work = plan(find([str(folder)], is_table=False), output.done(retry_failed=False))
            room = Actors(2, 1, 1 << 27)
            batches = [pictures.materialize() for pictures in datasets(work, None, 8)]
            assert [some.num_blocks() for some in batches] == [some.count() for some in batches], "any actor takes one"
            captions = (captioned_batches(some, lambda: caption, room, 1) for some in batches)
            write(work, captions, output, Counts(), lambda _: None)
            output.flush()
    finally:
        ray.shutdown()
    return [row["text"] for row in rows_of(folder / "out")]


def test_nodes_get_the_whole_path_of_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a cluster start in another folder than the command."""
    shutil.copytree(DEMO_BUNDLE, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    make = model_for(Path("model"), Asking("what?", 1, AnswerOptions()), 1, "default", ship=False)
    assert isinstance(make, partial) and make.args[0].bundle == tmp_path / "model"


def test_what_a_column_may_hold() -> None:
    with Image.open(IMAGES / NAMES[0]) as image:
        samples = np.asarray(image.convert("RGB"))
    assert picture_of(b"bytes") == picture_of({"bytes": b"bytes", "path": None}) == b"bytes"
    assert picture_of("a.png") == picture_of({"bytes": None, "path": "a.png"}) == "a.png"
    made = picture_of(samples)
    assert isinstance(made, Image.Image) and np.array_equal(np.asarray(made), samples)
    for value, words in (
        (None, "the row has no picture"),
        (7, "the column holds int; expected bytes or a path"),
        (samples[0, 0, 0], "the column holds uint8"),
        (samples.astype(complex), "are no picture"),
        ("nothing://a/b.png", "nothing://a cannot be opened"),
    ):
        with pytest.raises(ImageError, match=re.escape(words)):
            picture_of(value)


def test_ship(two_nodes: LocalCluster, tmp_path: Path, answers: dict[str, str]) -> None:
    """Each node's cache gets the bundle and one tuned copy, of which all its actors' weights are mapped."""
    folder, output, bundle = pictures(tmp_path / "in", 40), tmp_path / "out", tmp_path / "model"
    shutil.copytree(DEMO_BUNDLE, bundle)
    done = two_nodes.caption(folder, "-o", output, "--bundle", bundle, "--ship", "--threads", "1", "--actors", "2")
    assert done.returncode == 0, done.stderr
    check(output, folder, answers)
    (brought,) = (two_nodes.home / "cache/tinygptv/bundles").iterdir()
    assert {path.name for path in brought.iterdir()} >= {path.name for path in bundle.iterdir()}
    tuned = [*(two_nodes.home / "cache/tinygptv").glob("**/index.json")]
    assert len(tuned) == 1, "the same bundle has one, however it came"
    assert not (bundle / "tuned").exists()


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"RAY_AUTH_MODE": ""}, id="mode"),
        pytest.param({"RAY_AUTH_TOKEN": "8" * 64}, id="wrong"),
        pytest.param({"RAY_AUTH_TOKEN": ""}, id="none"),
    ],
)
def test_a_token_is_asked_for(values: dict[str, str], two_nodes: LocalCluster, tmp_path: Path) -> None:
    """Ray's `ray start` wants one as soon as there is one in the home folder, which programs do not give unasked."""
    environment = two_nodes.environment() | values | {"RAY_NUM_REDIS_GET_RETRIES": "1"}
    environment = {name: value for name, value in environment.items() if value}
    line = complaint(two_nodes.caption(IMAGES, "-o", tmp_path / "out", env=environment))
    assert line.startswith(f"tinygptv: the Ray cluster at {two_nodes.address} admits only who has its token; set RAY_")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threads", "9"], "no node has 9 CPUs for an actor: the largest has 2 for Ray"),
        (["--actors", "9"], "the cluster has the CPUs for 4 actors of 1 threads, not for 9"),
        (
            ["--batch-size", "10000000"],
            "of memory for Ray that an actor needs; start Ray with more (ray start ",
        ),
        (["--bundle", "nowhere"], "nowhere is not a folder; expected a bundle"),
        (["--question", "what " * 3000], "the question has 15,000 characters, and cannot fit in the model's context"),
    ],
)
def test_what_cannot_be_done(options: list[str], words: str, two_nodes: LocalCluster, tmp_path: Path) -> None:
    assert words in complaint(two_nodes.caption(IMAGES / NAMES[0], "-o", tmp_path / "out", *options))


# What dies


@pytest.mark.slow
def test_actors_a_reader_and_a_node_die(two_nodes: LocalCluster, tmp_path: Path, answers: dict[str, str]) -> None:
    folder, output = pictures(tmp_path / "in", 600), tmp_path / "out"
    process = begun(two_nodes, folder, "-o", output)
    try:
        busy_actor(two_nodes, process).kill()
        for reader in two_nodes.actors("ray::MapWorker(MapBatches(_Reader))")[:1]:  # they end early
            reader.kill()
        two_nodes.kill_node(1)
        two_nodes.add_node(2)
        busy_actor(two_nodes, process).kill()
        _, said = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "600 pictures: 600 captioned, 0 done before, 0 failed" in said
    check(output, folder, answers)


@pytest.mark.slow
def test_the_command_dies(two_nodes: LocalCluster, tmp_path: Path, answers: dict[str, str]) -> None:
    """Killed, then interrupted, then left alone: each run does what the ones before have not written."""
    count, done = 400, 0
    folder, output = pictures(tmp_path / "in", count), tmp_path / "out"
    for way in (signal.SIGKILL, signal.SIGINT):
        process = begun(two_nodes, folder, "-o", output, "--actors", "2")
        try:
            busy_actor(two_nodes, process)
            process.send_signal(way)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
        before, done = done, len(rows_of(output)) if list(output.glob("part-*")) else 0
        if way == signal.SIGINT:
            assert process.returncode == 130, said
            assert f"interrupted ({done - before} captioned, {before} done before, 0 failed" in said
    assert done < count
    last = two_nodes.caption(folder, "-o", output, "--threads", "1", "--actors", "2")
    assert f"{count} pictures: {count - done} captioned, {done} done before, 0 failed" in last.stderr
    check(output, folder, answers)
    assert all(name.startswith(("part-", "_tinygptv")) for name in os.listdir(output))


def begun(running: LocalCluster, *arguments: str | Path) -> subprocess.Popen[str]:
    """The command, which goes on; actors of earlier ones are gone."""
    wait_until(lambda: not running.actors())
    command = running.command(*arguments, "--threads", "1")
    return subprocess.Popen(
        command,
        env=running.environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )


def busy_actor(running: LocalCluster, run: subprocess.Popen[str]) -> psutil.Process:
    """One that computes captions: Ray names a process by what it does."""
    give_up = time.monotonic() + 60
    while run.poll() is None and time.monotonic() < give_up:
        for process in running.actors():
            with suppress(psutil.Error):
                if process.cmdline()[0].endswith(".submit"):
                    return process
        time.sleep(0.05)
    raise AssertionError("it ended too early")
