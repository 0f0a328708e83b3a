"""``tinygptv caption --ray``: captions pictures on the nodes of a Ray cluster."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.manifest import FILE_NAME as MANIFEST
from ..bundle.manifest import read_manifest
from ..errors import TinyGPTVError, line_of, reason_of
from ..loading import DEMO_BUNDLE
from ..options import AnswerOptions
from ..system.files import sha256_of
from .options import EXIT_ERROR, EXIT_INTERRUPTED, bundle_of, positive, require
from .terminal import complain, number_of, progress_bar, remark, status, tally

if TYPE_CHECKING:
    from ray.data import Dataset

    from ..cluster.output import Output
    from ..cluster.run import Counts

ADDRESS = re.compile(r"auto|local|(ray://)?[\w.-]+:\d+|(ray://)?\[[\w:]+\]:\d+")
TOLD = 10
"""Maximum number of errors that are printed; the output has all of them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that apply to ``--ray`` only."""
    group = parser.add_argument_group(
        "on a cluster",
        "with --ray, each FOLDER may also be a glob, a Parquet table, a WebDataset shard (.tar), a folder of these, or "
        "a URI such as s3://bucket/pictures, and OUTPUT is a folder of Parquet files (or its URI)",
    )
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="caption on the Ray cluster at HOST:PORT (default: the one in RAY_ADDRESS, else one that is started on "
        "this machine, and ends with the command)",
    )
    group.add_argument("--actors", type=positive, metavar="N", help="models at a time (default: all that fit)")
    group.add_argument("--column", metavar="NAME", help="of tables: the column with pictures, as bytes or paths")
    group.add_argument(
        "--ship", action="store_true", help="bring the bundle to each node, if nodes do not see its folder"
    )
    group.add_argument(
        "--retry-failed", action="store_true", help="caption pictures again whose rows in OUTPUT have an error"
    )


def check(options: argparse.Namespace) -> None:
    """Exit with a usage message if options cannot be combined."""
    if options.ray is None:
        for name in ("actors", "column", "ship", "retry_failed"):
            if getattr(options, name):
                options.parser.error(f"--{name.replace('_', '-')} is about --ray, which was not given")
        return
    for name in ("sidecar", "overwrite"):
        if getattr(options, name):
            options.parser.error(f"--{name} writes beside pictures of this machine; it does not go with --ray")
    if options.ray and not ADDRESS.fullmatch(options.ray):
        options.parser.error(f"--ray is {options.ray!r}; expected HOST:PORT, or nothing: then put it last")
    if str(options.output) == "-":
        options.parser.error("-o is -; with --ray, OUTPUT is a folder of Parquet files")
    output = _with_end(options.output)
    for source in options.folders:
        if _with_end(source).startswith(output):
            options.parser.error(f"{source} is where captions go: it cannot be a source too; choose another OUTPUT")


def _with_end(name: str) -> str:
    from ..cluster.places import is_local

    return os.path.join(os.path.realpath(name), "") if is_local(name) else f"{name.rstrip('/')}/"


def run(options: argparse.Namespace) -> int:
    """Caption all pictures that have no row yet."""
    require("ray", "ray", "pyarrow")
    from ..cluster.output import open_output
    from ..cluster.run import Counts
    from ..cluster.sources import find

    bundle = bundle_of(options.bundle)
    manifest = read_manifest(bundle)
    question = manifest.caption_question if options.question is None else options.question
    settings = {
        "model": manifest.name,
        "bundle": sha256_of(bundle / MANIFEST)[:12],
        "question": question,
        "max_new_tokens": str(options.max_new_tokens or "default"),
        "template": options.template or manifest.default_template,
    }
    counts, is_interrupted, started = Counts(), False, time.perf_counter()
    try:
        with status("looking for pictures ..."):
            found = find(options.folders, is_table=options.column is not None)
        with open_output(options.output, settings) as output, _cluster(options.ray):
            started = time.perf_counter()
            with _interrupts() as check:
                _caption(options, bundle, question, found, output, counts, check)
    except KeyboardInterrupt:
        is_interrupted = True
    except OSError as error:
        raise TinyGPTVError(line_of(error)) from error
    finally:
        seconds = time.perf_counter() - started
    if options.json:
        places = {"sources": options.folders, "output": options.output}
        print(json.dumps({**places, **vars(counts), "seconds": seconds, "interrupted": is_interrupted}), flush=True)
    summary = tally(counts.captioned, counts.skipped, counts.failed, seconds)
    if is_interrupted:
        remark(f"interrupted ({summary}); run the same command again to continue")
        return EXIT_INTERRUPTED
    remark(f"{number_of(counts.pictures)}: {summary}")
    return EXIT_ERROR if counts.failed else 0


@contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Yields a function that raises KeyboardInterrupt if Ctrl-C was pressed, whatever became of the first exception.

    Python drops one that is raised in a callback or destructor of a library's.
    """
    pressed = threading.Event()

    def note(number: int, frame: object) -> None:
        pressed.set()
        raise KeyboardInterrupt

    def check() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check  # of a program that ignores it, or has its own way
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _caption(
    options: argparse.Namespace,
    bundle: Path,
    question: str,
    found: Any,
    output: Output,
    counts: Counts,
    check: Callable[[], None],
) -> None:
    from ..cluster.actor import Asking
    from ..cluster.dataset import captioned_batches, model_for, room_for
    from ..cluster.run import ahead, at_once, datasets, plan, write

    with status("looking for what is done ..."):
        work = plan(found, output.done(retry_failed=options.retry_failed))
    todo = int((~work.is_done).sum())
    room = partial(
        room_for,
        read_manifest(bundle),
        options.memory,
        options.batch_size,
        actors=options.actors,
        threads=options.threads,
        cores_left=0,  # reading takes none
    )
    asking = Asking(question, options.batch_size, AnswerOptions(options.max_new_tokens, options.template))
    place = None if bundle == DEMO_BUNDLE else bundle

    def captions() -> Iterator[Dataset]:
        if not work.units:
            return
        count = at_once(todo, room().count, options.batch_size)
        for batches in datasets(work, options.column, count):
            actors = room()  # on the nodes that there are by then
            actors = replace(actors, count=min(actors.count, todo))  # no model is loaded for nothing
            make = model_for(place, asking, actors.threads, options.memory, ship=options.ship)
            yield captioned_batches(batches, make, actors, ahead(todo, actors.count, count))

    with progress_bar("captioning", todo, "img") as bar:

        def step(errors: list[tuple[str, str]]) -> None:
            for place, (source, error) in enumerate(errors, counts.failed - len(errors)):
                if place < TOLD:
                    complain(f"{source}: {error}")
                elif place == TOLD:
                    complain("there are more pictures that cannot be read; OUTPUT has their errors")
            bar.update(counts.captioned + counts.failed - bar.n)
            bar.set_postfix(failed=counts.failed)
            check()

        write(work, captions(), output, counts, step)


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Connect to Ray, or start it on this machine; Ray's own messages go to its logs.

    Raises:
        TinyGPTVError: There is no such cluster, or none can be started.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    given = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
    if address == "local":
        # Nobody else's programs may join, though Ray listens on the network.
        given |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if not _wants_statistics():
        given["RAY_USAGE_STATS_ENABLED"] = "0"
    for name, value in given.items():
        os.environ.setdefault(name, value)
    import ray.data
    from ray.exceptions import RayError

    started: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        _check_it_answers(address)
        with status("starting Ray ..." if started else "connecting to Ray ..."), _quiet():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **started)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        if "authentication token" in f"{error} {error.__cause__}".lower():
            raise TinyGPTVError(
                f"the Ray cluster at {address} admits only who has its token; set RAY_AUTH_MODE=token, and copy "
                "~/.ray/auth_token of its head here, or set RAY_AUTH_TOKEN to what that file holds"
            ) from error
        reason = reason_of(error).strip().splitlines()[0]
        raise TinyGPTVError(f"no Ray cluster at {address}: {reason}; start one with: ray start --head") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.")
            yield
    finally:
        with _quiet():
            ray.shutdown()


def _check_it_answers(address: str) -> None:
    """Check that the cluster's address accepts connections; Ray itself would retry for minutes.

    Raises:
        OSError: It accepts no connections.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()


def _wants_statistics() -> bool:
    """Whether the user has enabled Ray's usage statistics, with ``ray enable-usage-stats`` for example."""
    path = os.environ.get("RAY_USAGE_STATS_CONFIG_PATH") or Path.home() / ".ray" / "config.json"
    try:
        return json.loads(Path(path).read_text(encoding="utf-8")).get("usage_stats") is True
    except (OSError, ValueError, AttributeError):
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what Ray's C++ code writes to stderr while it starts and ends, as it is not meant for the user."""
    sys.stderr.flush()
    kept = os.dup(2)
    with ExitStack() as stack:
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 2)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
