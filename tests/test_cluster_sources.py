"""Where pictures are found for a cluster, and how they are read: files, tables, shards."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tinygptv.runtime.cluster import places, reading, run, sources
from tinygptv.runtime.cluster.batches import pack, unpack
from tinygptv.runtime.cluster.output import open_output
from tinygptv.runtime.cluster.reading import read, schema
from tinygptv.runtime.cluster.sources import (
    NOT_UNICODE,
    PICTURES_A_UNIT,
    Found,
    Unit,
    find,
    look_through,
    units_of,
    units_of_files,
)
from tinygptv.runtime.errors import ArgumentError

IMAGES = Path(__file__).parent / "images"
RED = (IMAGES / "red_triangle.png").read_bytes()
TEAL = (IMAGES / "teal_circle.png").read_bytes()


def put(path: Path, data: bytes = RED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def shard(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def table(path: Path, groups: int = 1, **columns: Any) -> Path:
    made = pa.table(columns)
    parquet.write_table(made, path, row_group_size=-(-len(made) // groups))
    return path


def rows_of(unit: Unit, column: str | None = None) -> list[dict[str, Any]]:
    return [row for some in read(unit, column, 16) for row in some.to_pylist()]


def contents(uri: Path, column: str | None = None) -> list[tuple[Any, ...]]:
    units = units_of(look_through(str(uri)), 0, ())
    return [(row["row"], row["name"], row["image"], row["error"]) for unit in units for row in rows_of(unit, column)]


# Found


def test_folders_globs_and_files(tmp_path: Path) -> None:
    for name in ("a.png", "b/c.JPG", "b/d e é.webp", ".hidden.png", ".git/x.png", "notes.txt"):
        put(tmp_path / name)
    everything = [str(tmp_path / name) for name in ("a.png", "b/c.JPG", "b/d e é.webp")]
    assert find([str(tmp_path)], is_table=False).files == everything
    assert find([f"{tmp_path}/b/*"], is_table=False).files == everything[1:]
    assert find([f"{tmp_path}/?.png"], is_table=False).files == everything[:1]
    assert find([f"{tmp_path}/b", f"{tmp_path}/a.png"], is_table=False).files == [*everything[1:], everything[0]]


def test_a_name_with_a_globs_letters(tmp_path: Path) -> None:
    put(tmp_path / "a[1].png")
    put(tmp_path / "a1.png")
    assert find([f"{tmp_path}/a[1].png"], is_table=False).files == [f"{tmp_path}/a[1].png"]


def test_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "here/a.png")
    monkeypatch.chdir(tmp_path)
    assert find(["here"], is_table=False).files == [str(tmp_path / "here/a.png")]


def test_pictures_go_before_shards_and_shards_before_tables(tmp_path: Path) -> None:
    table(tmp_path / "t.parquet", image=[RED])
    table(tmp_path / "_t.parquet", image=[RED])
    assert find([str(tmp_path)], is_table=False) == Found([], [f"{tmp_path}/t.parquet"], [])
    shard(tmp_path / "s.tar", a__png=RED)
    assert find([str(tmp_path)], is_table=False) == Found([], [f"{tmp_path}/s.tar"], [])
    put(tmp_path / "a.png")
    assert find([str(tmp_path)], is_table=False) == Found([f"{tmp_path}/a.png"], [], [])
    assert find([str(tmp_path)], is_table=True) == Found([], [f"{tmp_path}/t.parquet"], [])


def test_captions_of_before_are_no_sources(tmp_path: Path) -> None:
    given = put(tmp_path / "in" / "x.png").with_name("t.parquet")
    table(given, image=[RED])
    given.with_name("x.png").unlink()
    with open_output(str(tmp_path / "in" / "out"), {"model": "m"}) as output:
        output.add(pa.table({"source": ["a.png"]}))
    (made,) = (tmp_path / "in" / "out").glob("part-*.parquet")
    for source in (f"{tmp_path}/in", f"{tmp_path}/in/**/*.parquet", f"{tmp_path}/in/*"):
        for is_table in (True, False):
            assert find([source], is_table=is_table).containers == [str(given)]
    for source in (made.parent, made):  # meant: all sources of one run as those of another
        assert find([str(source)], is_table=True).containers == [str(made)]


def test_captions_of_before_in_any_file_system(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/tables/t.parquet", table(tmp_path / "t.parquet", image=[RED]).read_bytes())
    try:
        with open_output("memory://tables/out", {"model": "m"}) as output:
            output.add(pa.table({"source": ["a.png"]}))
        assert len(memory.ls("/tables/out")) == 2
        for source in ("memory://tables", "memory://tables/**/*.parquet"):
            assert find([source], is_table=True).containers == ["memory://tables/t.parquet"]
        assert len(find(["memory://tables/out"], is_table=True).containers) == 1
    finally:
        memory.rm("/tables", recursive=True)


def test_any_file_system(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("a.png", "b/c.png", ".x/d.png", "notes.txt"):
        memory.pipe(f"/pictures/{name}", RED)
    try:
        files = ["memory://pictures/a.png", "memory://pictures/b/c.png"]
        assert find(["memory://pictures"], is_table=False).files == files
        assert find(["memory://pictures/b/*.png"], is_table=False).files == files[1:]
        assert [row["image"] for row in rows_of(next(units_of_files([(0, files[0])])))] == [RED]
    finally:
        memory.rm("/pictures", recursive=True)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none", "none does not exist"),
        ("empty", "empty has no pictures; expected files such as"),
        ("notes.txt", "notes.txt is no picture, .parquet table or .tar shard"),
        ("s.tar.gz", "unpack shards that are compressed"),
        ("*.nothing", "has no pictures"),
        ("foo://bucket/x", "foo://bucket cannot be opened"),
    ],
)
def test_what_is_no_source(source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    put(tmp_path / "notes.txt")
    put(tmp_path / "s.tar.gz")
    with pytest.raises(ArgumentError, match=re.escape(words)):
        find([source], is_table=False)


def test_a_file_named_twice(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with pytest.raises(ArgumentError, match="1 files are in more than one SOURCE"):
        find([str(tmp_path), f"{tmp_path}/a.png"], is_table=False)


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / os.fsdecode(b"b\xff.png")).write_bytes(RED)
    found = find([str(tmp_path)], is_table=False)
    assert found.files == [f"{tmp_path}/a.png"]
    assert found.unreadable == [(f"{tmp_path}/b\\xff.png", NOT_UNICODE)]


# Read


def test_files(tmp_path: Path) -> None:
    a, b = put(tmp_path / "a.png"), tmp_path / "gone.png"
    (unit,) = units_of_files([(5, str(a)), (9, str(b))])
    first, second = rows_of(unit)
    assert first == {"number": 5, "source": str(a), "row": None, "name": None, "image": RED, "error": None}
    assert (second["number"], second["image"]) == (9, None)
    assert "cannot be read" in second["error"] and "No such file" in second["error"]


def test_many_files_are_several_units(tmp_path: Path) -> None:
    files = [(number, f"{number}.png") for number in range(2 * PICTURES_A_UNIT + 1)]
    units = list(units_of_files(files))
    assert [len(unit.items) for unit in units] == [PICTURES_A_UNIT, PICTURES_A_UNIT, 1]
    assert [(number, uri) for unit in units for number, uri in zip(unit.numbers, unit.items, strict=True)] == files


def test_a_table_of_bytes(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", groups=3, id=list(range(5)), image=[RED, TEAL, None, RED, TEAL])
    assert contents(path) == [
        (0, None, RED, None),
        (1, None, TEAL, None),
        (2, None, None, "the row has no picture"),
        (3, None, RED, None),
        (4, None, TEAL, None),
    ]


def test_a_table_of_paths(tmp_path: Path) -> None:
    put(tmp_path / "pictures/a.png", TEAL)
    path = table(tmp_path / "t.parquet", where=["pictures/a.png", str(tmp_path / "pictures/a.png"), "gone.png"])
    (first, second, third) = contents(path, "where")
    assert first == (0, "pictures/a.png", TEAL, None)
    assert second[2] == TEAL
    assert third[2] is None and "gone.png" in third[1] and "cannot be read" in third[3]


def test_a_table_as_hugging_face_writes_it(tmp_path: Path) -> None:
    put(tmp_path / "b.png", TEAL)
    rows = [{"bytes": RED, "path": "a.png"}, {"bytes": None, "path": "b.png"}, {"bytes": None, "path": None}]
    found = contents(table(tmp_path / "t.parquet", image=rows))
    assert found[:2] == [(0, "a.png", RED, None), (1, "b.png", TEAL, None)]
    assert found[2][2] is None and "expected bytes or a path" in found[2][3]


def test_rows_that_are_done_are_not_read(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", groups=3, image=[RED] * 6)
    units = list(units_of(look_through(str(path)), 100, [0, 1, 4]))
    assert [(unit.groups, unit.rows, unit.numbers) for unit in units] == [
        ({1: range(2, 4), 2: range(4, 6)}, [2, 3, 5], [102, 103, 105])
    ]
    assert [(row["row"], row["number"]) for unit in units for row in rows_of(unit)] == [(2, 102), (3, 103), (5, 105)]


def test_small_row_groups_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So batches are full; a group that cannot be read has no effect on the others of its unit."""
    monkeypatch.setattr(sources, "PICTURES_A_UNIT", 5)
    path = table(tmp_path / "t.parquet", groups=5, image=[os.urandom(2000) for _ in range(9)] + [RED])
    units = list(units_of(look_through(str(path)), 0, ()))
    assert [unit.rows for unit in units] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    assert [[len(batch) for batch in read(unit, None, 4)] for unit in units] == [[4, 2], [4]]
    data = bytearray(path.read_bytes())
    data[4:1000] = bytes(996)
    path.write_bytes(data)
    rows = [row for unit in units for row in rows_of(unit)]
    assert [row["row"] for row in rows] == list(range(10))
    assert [row["error"] is None for row in rows] == [False] * 2 + [True] * 8


def test_a_table_that_has_fewer_rows_later(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", image=[RED, TEAL, RED])
    (unit,) = units_of(look_through(str(path)), 0, ())
    table(path, image=[RED, TEAL])
    assert [(row["row"], row["error"]) for row in rows_of(unit)] == [
        (0, None),
        (1, None),
        (2, "the table cannot be read: it has fewer rows than when it was scanned"),
    ]


def test_batches_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pictures' sizes, but for very large ones."""
    monkeypatch.setattr(reading, "_BATCH_BYTES", 100_000)
    sizes = [10, 40_000, 10, 10, 60_000, 40_000, 10, 10, 200_000, 10, 10]
    files = [str(put(tmp_path / f"{number}.png", bytes(size))) for number, size in enumerate(sizes)]
    (unit,) = units_of_files(list(enumerate(files)))
    found = [[len(row["image"]) for row in batch.to_pylist()] for batch in read(unit, None, 4)]
    assert found == [sizes[:4], sizes[4:6], sizes[6:9], sizes[9:]]


def test_batches_are_packed_as_they_are() -> None:
    rows = pa.Table.from_pylist([{"number": 1, "image": RED}, {"number": 2, "image": None}, {"number": 3}], schema())
    one, other = pack(rows), pack(rows[1:])
    assert len(one) == len(other) == 1
    assert unpack(one) == rows and unpack(other) == rows[1:]
    assert unpack(pa.concat_tables([one, other])[1:]) == rows[1:]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", a=[1], b=[2])
    for column, words in ((None, "no column of the usual names"), ("c", "no column c; it has a, b")):
        ((_, _, image, error),) = contents(path, column)
        assert image is None and words in error


def test_a_shard(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", a__png=RED, a__txt=b"red", b__jpg=TEAL, c__json=b"{}")
    assert contents(path) == [(0, "a.png", RED, None), (1, "b.jpg", TEAL, None)]
    (unit,) = units_of(look_through(str(path)), 10, [0])
    assert [(row["number"], row["row"], row["name"]) for row in rows_of(unit)] == [(11, 1, "b.jpg")]


def test_a_shard_that_is_cut(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", a__png=RED, b__png=TEAL)
    whole = look_through(str(path))
    start = whole.members[1][1]
    path.write_bytes(path.read_bytes()[: start + 10])
    found = look_through(str(path))
    assert [name for name, _, _ in found.members] == ["a.png"]
    assert found.error is not None and "beyond 1 pictures" in found.error and "b.png" in found.error


@pytest.mark.parametrize("name", ["t.parquet", "s.tar"])
def test_containers_that_are_none(name: str, tmp_path: Path) -> None:
    found = look_through(str(put(tmp_path / name, b"nothing of the kind" * 50)))
    assert found.count == 0
    assert found.error is not None and "cannot be read" in found.error


def test_a_table_that_is_damaged_later(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", image=[os.urandom(4000), RED])
    units = list(units_of(look_through(str(path)), 0, ()))
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    assert all(row["image"] is None and "cannot be read" in row["error"] for unit in units for row in rows_of(unit))


# Other machines


def test_failures_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(places.time, "sleep", waits.append)
    tries = iter([OSError("reset"), OSError("reset"), None])

    def work() -> str:
        if error := next(tries):
            raise error
        return "read"

    assert places.persistently(work, local=False) == "read"
    assert waits == [0.5, 1.0]
    tries = iter([OSError("reset")] * 9)
    with pytest.raises(OSError, match="reset"):
        places.persistently(work, local=False)
    assert len(waits) == 2 + places.TRIES - 1
    tries = iter([OSError("reset")])
    with pytest.raises(OSError, match="reset"):
        places.persistently(work, local=True)
    tries = iter([FileNotFoundError("gone")])
    with pytest.raises(FileNotFoundError):
        places.persistently(work, local=False)


@pytest.mark.parametrize(("cores", "expected"), [(1, [3, 3, 9]), (2, [6, 9])])
def test_very_many_pictures_are_several_datasets(
    cores: int, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row groups stay whole, also if they are larger; each picture is in one dataset."""
    monkeypatch.setattr(run, "PICTURES_A_DATASET", 4)
    monkeypatch.setattr(run, "PICTURES_A_CORE", 4)
    monkeypatch.setattr(run, "_cores", lambda: cores)
    monkeypatch.setattr(run, "_dataset", lambda units, *_: [number for unit in units for number in unit.numbers])
    monkeypatch.setattr(sources, "PICTURES_A_UNIT", 3)
    units, first = [], 0
    for name, groups, count in (("a", 2, 6), ("b", 1, 8), ("c", 1, 1)):
        container = look_through(str(table(tmp_path / f"{name}.parquet", groups, image=[RED] * count)))
        units.extend(units_of(container, first, ()))
        first += count
    work = run.Work(units, [], np.zeros(first, bool))
    parts: list[Any] = [*run.datasets(work, None, 8)]
    assert [len(part) for part in parts] == expected
    assert [number for part in parts for number in part] == list(range(first))


@pytest.mark.parametrize(
    ("todo", "actors", "batch_size", "expected"),
    [
        (0, 2, 8, 1),
        (1, 2, 8, 1),
        (3, 2, 8, 2),
        (16, 2, 8, 8),
        (24, 2, 8, 6),
        (40, 2, 8, 7),
        (48, 2, 8, 8),
        (999, 2, 8, 8),
        (1023, 2, 8, 8),
        (2048, 2, 8, 16),
        (10_000, 2, 8, 32),
        (10_000, 2, 64, 64),
        (10_000, 64, 8, 8),
        (100_000, 64, 8, 24),
        (200_000, 64, 8, 32),
        (100, 1, 8, 8),
        (100, 2, 1, 1),
        (10_000, 2, 1, 32),
    ],
)
def test_how_many_an_actor_gets_at_a_time(todo: int, actors: int, batch_size: int, expected: int) -> None:
    """All the same; as many as are decoded together, or several times that if there are very many."""
    assert run.at_once(todo, actors, batch_size) == expected


@pytest.mark.parametrize(
    ("todo", "actors", "at_once", "expected"), [(16, 2, 8, 1), (1023, 2, 8, 1), (1024, 2, 8, 2), (1, 64, 1, 1)]
)
def test_a_second_batch_waits_in_an_actor_only_if_there_are_very_many(
    todo: int, actors: int, at_once: int, expected: int
) -> None:
    assert run.ahead(todo, actors, at_once) == expected
