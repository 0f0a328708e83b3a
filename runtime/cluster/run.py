"""A run over many pictures: listed, read, captioned and written, each exactly once, whatever dies on the way."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TinyGPTVError
from .batches import pack, unpack
from .dataset import AT_ONCE
from .output import Output
from .reading import read, schema
from .sources import Container, Found, Unit, look_through, units_of, units_of_files

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

PICTURES_A_DATASET, PICTURES_A_CORE = 250_000, 4_000
"""Approximate number of pictures in one dataset: the larger of the two. Ray keeps about 40 bytes for each until the
dataset ends (measured). The next dataset has new actors, which wait for the last of the old ones and load the model
again: less than a hundredth of the time of 4,000 pictures."""
_ROUNDS = 64
"""Number of batches of each actor from which on they are larger, and a second one waits in the actor for the first:
either saves time between batches, and costs some at the end, where actors have nothing to do until the last one has."""
_READERS = 4
"""Minimum number of processes that read; Ray counts no core for them."""
UNIT = "unit"
_OUR_ERROR = re.compile(rf"{re.escape(TinyGPTVError.__module__)}\.\w+: (.+)")


@dataclass
class Counts:
    """Counts of pictures."""

    pictures: int = 0
    skipped: int = 0
    """Pictures captioned by an earlier run."""
    captioned: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Work:
    """The pictures that a run has to process."""

    units: list[Unit]
    failed: list[dict[str, Any]]
    """Rows of pictures that cannot be accessed."""
    is_done: np.ndarray[Any, np.dtype[np.bool_]]
    """Whether a picture is done, by its number."""


def plan(found: Found, done: pyarrow.Table) -> Work:
    """Number all pictures, and find those that have no row yet.

    Args:
        found: The sources; tables and shards are scanned on the cluster's nodes.
        done: Columns ``source`` and ``row`` of the existing rows.
    """
    import pyarrow
    from pyarrow import compute

    files = pyarrow.array(found.files, pyarrow.string())
    of_files = done.filter(compute.is_null(done.column("row"))).column("source").combine_chunks()
    is_done = [compute.is_in(files, value_set=of_files).to_numpy(zero_copy_only=False)]
    units = list(units_of_files([(int(number), found.files[number]) for number in np.flatnonzero(~is_done[0])]))
    failed: list[dict[str, Any]] = []
    count = len(files)

    def fail(source: str, row: int, error: str, known: set[Any]) -> None:
        nonlocal count
        is_known = row in known
        is_done.append(np.array([is_known]))
        if not is_known:
            failed.append({"number": count, "source": source, "row": row, "error": error})
        count += 1

    rows_of: dict[str, set[int]] = {}
    for batch in done.filter(compute.is_valid(done.column("row"))).to_batches():
        for source, row in zip(*(batch.column(name).to_pylist() for name in ("source", "row")), strict=True):
            rows_of.setdefault(source, set()).add(row)
    for container in _looked_through(found.containers):
        known = rows_of.get(container.uri, set())
        units.extend(units_of(container, count, known))
        mask = np.zeros(container.count, bool)
        mask[[row for row in known if row < container.count]] = True
        is_done.append(mask)
        count += container.count
        if container.error is not None:
            fail(container.uri, container.count, container.error, known)
    for name, error in found.unreadable:
        fail(name, 0, error, rows_of.get(name, set()))
    return Work(units, failed, np.concatenate(is_done))


def _looked_through(uris: Sequence[str]) -> Iterator[Container]:
    if not uris:
        return
    import ray

    look: Any = ray.remote(num_cpus=0, max_retries=-1)(look_through)
    ahead = 64
    waiting = [look.remote(uri) for uri in uris[:ahead]]
    for place in range(len(uris)):
        yield ray.get(waiting[place])
        waiting[place] = None
        if len(waiting) < len(uris):
            waiting.append(look.remote(uris[len(waiting)]))


def at_once(todo: int, actors: int, batch_size: int) -> int:
    """How many pictures an actor gets at a time: as many as it decodes together or several times that.

    Args:
        todo: Number of pictures to caption.
        actors: Number of actors, each of which gets the same number of pictures.
        batch_size: Maximum number of answers that an actor decodes together.
    """
    decoded = batch_size * max(1, min(AT_ONCE // batch_size, todo // (actors * batch_size * _ROUNDS)))
    rounds = max(1, -(-todo // (actors * decoded)))
    return max(1, -(-todo // (actors * rounds)))


def ahead(todo: int, actors: int, at_once: int) -> int:
    """How many batches an actor gets before it has done the first: 1, so that none waits for a busy actor while another
    has nothing to do; or 2, so that none waits for the next, if there are very many.

    Args:
        todo: Number of pictures to caption.
        actors: Number of actors.
        at_once: Number of pictures in a batch.
    """
    return 2 if todo >= actors * at_once * _ROUNDS else 1


def _cores() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def datasets(work: Work, column: str | None, at_once: int) -> Iterator[Dataset]:
    """The pictures, read as there is room for them, in packed batches; see :func:`.reading.schema`.

    Args:
        work: The result of :func:`plan`.
        column: Of tables: where the pictures are.
        at_once: Pictures that an actor gets at a time.

    Yields:
        One dataset, or one after the other if there are very many pictures.
    """
    most = max(PICTURES_A_DATASET, PICTURES_A_CORE * _cores())
    ends = np.cumsum([len(unit.numbers) for unit in work.units])
    for _, units in groupby(range(len(ends)), lambda unit: (ends[unit] - 1) // most):
        yield _dataset([work.units[unit] for unit in units], column, at_once)


def _dataset(units: Sequence[Unit], column: str | None, at_once: int) -> Dataset:
    import ray
    from ray.data import ActorPoolStrategy

    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # so each row, which is a whole batch, is a block of its own
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        rows = [{UNIT: pickle.dumps(unit)} for unit in units]
        listed = ray.data.from_items(rows, override_num_blocks=len(rows))
        readers = max(_READERS, len(ray.nodes()))
        return listed.map_batches(
            _Reader,
            fn_constructor_args=(column, at_once),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            compute=ActorPoolStrategy(size=min(readers, len(rows)), max_tasks_in_flight_per_actor=1),
        )


class _Reader:
    """Reads units in an actor: a process of its own for each unit would take seconds to start, on the model's cores."""

    def __init__(self, column: str | None, at_once: int) -> None:
        self._column, self._at_once = column, at_once

    def __call__(self, rows: pyarrow.Table) -> Iterator[pyarrow.Table]:
        for data in rows.column(UNIT).to_pylist():
            yield from map(pack, read(pickle.loads(data), self._column, self._at_once))


def write(
    work: Work,
    captions: Iterable[Dataset],
    output: Output,
    counts: Counts,
    step: Callable[[list[tuple[str, str]]], object],
) -> None:
    """Compute and write all rows.

    Args:
        work: The result of :func:`plan`.
        captions: Packed batches with captions of its units' pictures, in datasets that are computed one after the
            other.
        output: Where the rows are written.
        counts: The counts, updated in place.
        step: Called after each change of the counts, with the sources of pictures that cannot be read, and why.

    Raises:
        OSError: The output cannot be written.
        TinyGPTVError: A picture is missing at the end, or what an actor failed with.
    """
    import pyarrow
    from pyarrow import compute

    is_done = work.is_done
    counts.pictures, counts.skipped = len(is_done), int(is_done.sum())

    def keep(rows: pyarrow.Table) -> None:
        numbers, first = np.unique(rows.column("number").to_numpy(), return_index=True)
        is_new = ~is_done[numbers]
        rows = rows.take(first[is_new])
        is_done[numbers] = True
        errors = rows.filter(compute.is_valid(rows.column("error"))).select(["source", "error"]).to_pylist()
        output.add(rows.drop_columns(["number"]))
        counts.failed += len(errors)
        counts.captioned += len(rows) - len(errors)
        step([(row["source"], row["error"]) for row in errors])

    if work.failed:
        keep(pyarrow.Table.from_pylist(work.failed, schema()))
    for dataset in captions:
        for rows in _computed(dataset):
            keep(rows)
    if missing := int((~is_done).sum()):
        raise TinyGPTVError(f"{missing} pictures came back without a row; the same command makes them again")


def _computed(captions: Dataset) -> Iterator[pyarrow.Table]:
    from ray.exceptions import RayError

    try:
        yield from map(unpack, captions.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    except RayError as error:
        # Ray passes errors of actors on as text, whatever they were.
        ours = _OUR_ERROR.findall(str(error))
        last = str(error).strip().splitlines()[-1]
        theirs = f"Ray gave up: {last} (its logs on the nodes, /tmp/ray/session_latest/logs, may say more)"
        raise TinyGPTVError(ours[-1] if ours else theirs) from error
