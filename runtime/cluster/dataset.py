"""Captions for a Ray Data dataset: its pictures are sent to actors that have loaded the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.manifest import FILE_NAME as MANIFEST
from ..bundle.manifest import Manifest, read_manifest
from ..errors import ArgumentError, MemoryShortageError
from ..loading import DEMO_BUNDLE, MemoryMode
from ..memory_needs import need_of
from ..model import DEFAULT_BATCH_SIZE
from ..options import AnswerOptions
from ..system.files import sha256_of
from ..system.machine import SystemMemory
from .actor import Asking, BatchCaptioner, CaptionEach, Captioner, model_in_actor
from .node import Fetch, Model

if TYPE_CHECKING:
    from ray.data import Dataset

AT_ONCE = 32
"""Number of pictures that an actor gets at a time, unless it decodes more together: what it costs if it dies."""
WORKER_BYTES = 80_000_000
"""Ray itself in an actor, with pyarrow (measured: 65 MB)."""


def caption_dataset(
    dataset: Dataset,
    question: str | None = None,
    *,
    bundle: str | os.PathLike[str] | None = None,
    column: str = "image",
    keep: bool = False,
    actors: int | None = None,
    threads: int | None = None,
    memory: MemoryMode = "default",
    ship: bool = False,
    cores_left: int = 1,
    at_once: int = AT_ONCE,
    batch_size: int = DEFAULT_BATCH_SIZE,
    options: AnswerOptions | None = None,
) -> Dataset:
    """Ask the same about the picture of every row.

    Ray must be connected (``ray.init``), and tinygptv installed on every node. Nothing is computed until the dataset is
    consumed.

    Args:
        dataset: Any; ``ray.data.read_images``, ``read_parquet``, ``read_webdataset`` ... make one.
        question: What to ask; the bundle's own question for a caption if None.
        bundle: The model's folder, which all nodes see under this name; the built-in demo model's if None.
        column: Where the pictures are: bytes, paths or URIs, uint8 [height, width, channels], or Hugging Face's
            dicts of bytes and path.
        keep: Keep the pictures in the rows.
        actors: How many at most; as many as the cluster has room for if None.
        threads: Each computes with. If None, 1, which gives the most captions; or more, where a node has not the memory
            for as many actors as it has cores.
        memory: ``default`` or ``low``, as for :meth:`.TinyGPTV.load`.
        ship: Bring the bundle to each node, once, where nodes do not see its folder.
        cores_left: To the tasks that read the dataset, which take one each unless told otherwise; without any, a
            cluster that is full of actors waits for ever.
        at_once: Pictures that an actor gets at a time, which are done again if it dies.
        batch_size: Answers decoded at a time in each actor, at least 1.
        options: How each is to be written.

    Returns:
        The dataset with the columns of :class:`.Captioned`: ``text``, ``finish_reason``, ``regions`` and ``error``. A
        picture that cannot be read is a row with an error.

    Raises:
        BundleError: There is no such bundle.
        ArgumentError: The cluster has no room for even one actor, or for as many as were asked for.
        MemoryShortageError: No node has the memory.
    """
    manifest = read_manifest(DEMO_BUNDLE if bundle is None else Path(bundle))
    room = room_for(manifest, memory, batch_size, actors=actors, threads=threads, cores_left=cores_left)
    asking = Asking(question or manifest.caption_question, batch_size, options or AnswerOptions())
    make = model_for(bundle, asking, room.threads, memory, ship=ship)
    return captioned(dataset, make, room, at_once, column=column, keep=keep, all_at_once=not cores_left)


def model_for(
    bundle: str | os.PathLike[str] | None, asking: Asking, threads: int, memory: MemoryMode, *, ship: bool
) -> Callable[[], CaptionEach]:
    """A function that loads the model in an actor.

    Args:
        bundle: The model's folder; the built-in demo model's if None.
        asking: What to ask.
        threads: Each actor computes with.
        memory: How it is loaded.
        ship: Whether nodes fetch the bundle from this machine.
    """
    folder = DEMO_BUNDLE if bundle is None else Path(os.path.abspath(bundle))  # workers start in another folder
    fetch = _sender(folder) if ship and bundle is not None else None
    model = Model(None if bundle is None else folder, sha256_of(folder / MANIFEST), threads, memory, fetch)
    return partial(model_in_actor, model, asking)


def captioned(
    dataset: Dataset,
    make: Callable[[], CaptionEach],
    actors: Actors,
    at_once: int,
    *,
    column: str,
    keep: bool,
    all_at_once: bool,
) -> Dataset:
    """The same with whatever ``make`` loads; all actors at once, or one and then as many as are worth it."""
    # Where it may, Ray ends actors that have nothing to do for a moment, and each has a model to load.
    least, ahead = (actors.count, 1) if all_at_once else (1, None)
    return _mapped(dataset, Captioner, (make, column, keep), actors, at_once, least, ahead)


def captioned_batches(dataset: Dataset, make: Callable[[], CaptionEach], actors: Actors, ahead: int) -> Dataset:
    """The same for a dataset of packed batches, with column ``image``; reading it takes none of the actors' cores.

    Args:
        dataset: The batches.
        make: Loads the model.
        actors: Their number and resources.
        ahead: Number of batches that an actor gets before it has done the first of them.
    """
    return _mapped(dataset, BatchCaptioner, (make, "image", False), actors, 1, actors.count, ahead)


def _mapped(
    dataset: Dataset,
    kind: type[Captioner],
    arguments: tuple[Any, ...],
    actors: Actors,
    at_once: int,
    least: int,
    ahead: int | None,
) -> Dataset:
    from ray.data import ActorPoolStrategy

    return dataset.map_batches(
        kind,
        fn_constructor_args=arguments,
        batch_size=at_once,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=least, max_size=actors.count, max_tasks_in_flight_per_actor=ahead),
        num_cpus=actors.threads,
        memory=actors.memory,
        udf_modifying_row_count=False,
    )


@dataclass(frozen=True)
class Actors:
    """The number of actors, and the resources of each."""

    count: int
    threads: int
    memory: int
    """Bytes that no other actor can use; the weights are one copy for all of a node."""


def room_for(
    manifest: Manifest,
    memory: MemoryMode,
    batch_size: int,
    *,
    actors: int | None,
    threads: int | None,
    cores_left: int,
) -> Actors:
    """What the cluster has room for, or what a user wanted.

    Args:
        manifest: The model's.
        memory: How it is loaded.
        batch_size: Answers decoded at a time in each actor; each keeps its own KV cache.
        actors: How many, if the user said it.
        threads: Of each, if the user said it.
        cores_left: To others, of the largest node.

    Raises:
        ArgumentError: There is no room for what the user wanted, or for one.
        MemoryShortageError: There is none for one, for want of memory.
    """
    import ray

    nodes = sorted((node["Resources"] for node in ray.nodes() if node["Alive"]), key=lambda node: -node.get("CPU", 0))
    cores = [int(node.get("CPU", 0)) for node in nodes]
    cores[0] -= cores_left
    most = max(cores)
    if most < (threads or 1):
        left = f", of which {cores_left} is left to tasks that read" if cores_left else ""
        raise ArgumentError(
            f"no node has {threads or 1} CPUs for an actor: the largest has {cores[0] + cores_left} for Ray{left}; "
            "use fewer --threads"
        )
    of_model = need_of(manifest, memory, True, SystemMemory(None, None, None), captions=batch_size)
    need = WORKER_BYTES + of_model.unbacked
    fits = [int(node.get("memory", 0) // need) for node in nodes]
    threads = threads or max([1, *(-(-count // fit) for count, fit in zip(cores, fits, strict=True) if fit)])
    by_cores = [count // threads for count in cores]
    fitting = sum(map(min, by_cores, fits))
    if not fitting:
        raise MemoryShortageError(
            f"no node has the {need / 1e9:.1f} GB of memory for Ray that an actor needs; start Ray with more "
            "(ray start --memory), or use a smaller --batch-size or model"
        )
    if actors is not None and actors > fitting:
        why = "memory" if actors <= sum(by_cores) else "CPUs"
        raise ArgumentError(
            f"the cluster has the {why} for {fitting} actors of {threads} threads, not for {actors}; use fewer "
            "--actors or --threads"
        )
    return Actors(actors or fitting, threads, need)


def _sender(folder: Path) -> Fetch:
    """A function that reads this machine's files for the other nodes, some megabytes at a time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    sender: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Sender).remote(folder)
    return partial(_ask, sender)


class _Sender:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, place: int, count: int) -> bytes:
        with (self._folder / name).open("rb") as file:
            file.seek(place)
            return file.read(count)


def _ask(sender: Any, name: str, place: int, count: int) -> bytes:
    import ray

    data: bytes = ray.get(sender.read.remote(name, place, count))
    return data
