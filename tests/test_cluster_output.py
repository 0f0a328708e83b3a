"""Captions as a folder of Parquet files: found again, never mixed, whole after whatever happens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tinygptv.runtime.cluster import output as module
from tinygptv.runtime.cluster.output import SETTINGS, Output, open_output
from tinygptv.runtime.errors import ArgumentError

MODEL = {"model": "demo", "bundle": "0123456789ab", "question": "what?", "max_new_tokens": "default"}


@pytest.fixture(params=["folder", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """On this machine, and on a file system of fsspec's."""
    if request.param == "folder":
        yield str(tmp_path / "out é")
        return
    import fsspec

    yield "memory://captions/out"
    fsspec.filesystem("memory").store.clear()


def rows(*sources: str, error: str | None = None) -> pa.Table:
    text, reason = (None, error) if error else ("a circle", None)
    made = [
        {
            "source": source,
            "row": None,
            "name": None,
            "text": text,
            "finish_reason": None,
            "regions": [],
            "error": reason,
        }
        for source in sources
    ]
    return pa.Table.from_pylist(made, pa.schema([field for field in module.schema() if field.name in made[0]]))


def sources_done(found: Output, **options: bool) -> list[str]:
    return sorted(found.done(**{"retry_failed": False} | options).column("source").to_pylist())


def everything(found: Output) -> list[dict[str, Any]]:
    tables = []
    for name in found._parts:
        with found._file_system.open_input_file(f"{found._path}/{name}") as file:
            tables.append(parquet.read_table(file))
    return [row for table in tables for row in table.to_pylist()]


def test_what_is_written_is_found(uri: str) -> None:
    with open_output(uri, MODEL) as first:
        assert sources_done(first) == []
        first.add(rows("a.png", "b.png"))
        first.flush()
        first.add(rows("c.png"))
    with open_output(uri, MODEL) as second:
        assert sources_done(second) == ["a.png", "b.png", "c.png"]
        assert len(second._parts) == 2
        assert everything(second)[0] == {
            **{"source": "a.png", "row": None, "name": None, "model": "demo", "bundle": "0123456789ab"},
            **{"question": "what?", "text": "a circle", "finish_reason": None, "regions": [], "error": None},
        }


def test_an_error_ends_with_all_that_came(uri: str) -> None:
    def interrupted() -> None:
        with open_output(uri, MODEL) as first:
            first.add(rows("a.png"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with open_output(uri, MODEL) as second:
        assert sources_done(second) == ["a.png"]


def test_rows_are_written_now_and_then(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with open_output(uri, MODEL) as found:

        def parts_after(seconds: float) -> int:
            now[0] += seconds
            found.add(rows(f"{now[0]}.png"))
            return len([*Output(uri, MODEL)._parts])

        assert [parts_after(seconds) for seconds in (1, 8, 2, 1, 9)] == [0, 0, 1, 1, 1]
        assert parts_after(1) == 2
        now[0] += 2000  # from now on a hundredth of all is longer
        assert [parts_after(seconds) for seconds in (0, 15, 6)] == [3, 3, 4]


def test_failed_ones_again(uri: str) -> None:
    with open_output(uri, MODEL) as found:
        found.add(rows("a.png"))
        found.add(rows("b.png", error="it is a text"))
    with open_output(uri, MODEL) as found:
        assert sources_done(found) == ["a.png", "b.png"]
        assert sources_done(found, retry_failed=True) == ["a.png"]
        found.add(rows("b.png"))
    with open_output(uri, MODEL) as found:
        assert sorted((row["source"], row["error"]) for row in everything(found)) == [("a.png", None), ("b.png", None)]


@pytest.mark.parametrize("name", ["model", "bundle", "question", "max_new_tokens"])
def test_other_settings(name: str, uri: str) -> None:
    with open_output(uri, MODEL) as found:
        found.add(rows("a.png"))
    words = f"has captions of another {name}: {MODEL[name]!r}, not 'else'; choose another OUTPUT"
    with pytest.raises(ArgumentError, match=re.escape(words)), open_output(uri, MODEL | {name: "else"}):
        pass
    with open_output(uri, MODEL) as found:
        assert sources_done(found) == ["a.png"]


def test_other_settings_where_no_caption_is(uri: str) -> None:
    """Of a run that found no cluster, for example."""
    for settings in (MODEL, MODEL | {"question": "else"}):
        with open_output(uri, settings):
            pass
    with open_output(uri, MODEL | {"question": "else"}) as found:
        found.add(rows("a.png"))
    with pytest.raises(ArgumentError, match="another question: 'else'"), open_output(uri, MODEL):
        pass


def test_folders_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="holds files of something else"), open_output(str(tmp_path), MODEL):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["report.txt"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": "demo"}'])
def test_damaged_settings(text: str, tmp_path: Path) -> None:
    with open_output(str(tmp_path), MODEL) as found:
        found.add(rows("a.png"))
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(ArgumentError, match=f"{SETTINGS} is damaged"), open_output(str(tmp_path), MODEL):
        pass


def test_a_damaged_part(tmp_path: Path) -> None:
    with open_output(str(tmp_path), MODEL) as found:
        found.add(rows("a.png"))
    (part,) = tmp_path.glob("part-*")
    part.write_bytes(part.read_bytes()[:-20])
    with open_output(str(tmp_path), MODEL) as found, pytest.raises(ArgumentError, match=f"{part.name} is damaged"):
        found.done(retry_failed=False)


@pytest.mark.parametrize("done", [["a.png"], []])
def test_what_a_kill_left(done: list[str], uri: str) -> None:
    with open_output(uri, MODEL) as found:
        if done:
            found.add(rows(*done))
        found._file_system.create_dir(found._path)
        for name in ("_part-1-2.parquet", f"_{SETTINGS}"):
            with found._file_system.open_output_stream(f"{found._path}/{name}") as file:
                file.write(b"half")
    with open_output(uri, MODEL) as found:
        assert sources_done(found) == done
        from pyarrow.fs import FileSelector

        left = [info.base_name for info in found._file_system.get_file_info(FileSelector(found._path))]
        assert not [name for name in left if name.startswith(("_part", f"_{SETTINGS}"))]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")
    refused = pytest.raises(ArgumentError, match="another run is writing to")
    with open_output(uri, MODEL), refused, open_output(uri, MODEL):
        pass
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [SETTINGS]
    assert json.loads((tmp_path / "out" / SETTINGS).read_text()) == MODEL
