"""Measures `tinygptv caption --ray` on this machine; each command writes its section of results.json.

overhead   captions on one machine and on Ray's cluster of that machine, alternating, as whole processes
memory     of 1, 2 and 4 actors that share a tuned bundle
scaling    of actors whose model only sleeps, on simulated nodes
rows       the driver's memory through a million rows, with a model that does nothing

python benchmarks/cluster/measure.py overhead --pictures 10000
python benchmarks/cluster/measure.py overhead --bundle /data/bundle --pictures 48 --few 16
python benchmarks/cluster/measure.py memory --bundle /data/bundle
python benchmarks/cluster/measure.py scaling
python benchmarks/cluster/measure.py rows
python benchmarks/pages.py
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from tinygptv.runtime.captioning import Captioned
from tinygptv.runtime.cluster.dataset import AT_ONCE, Actors, captioned_batches
from tinygptv.runtime.cluster.output import open_output
from tinygptv.runtime.cluster.run import Counts, ahead, datasets, plan, write
from tinygptv.runtime.cluster.sources import find
from tinygptv.runtime.system.process import share_one_heap

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe

RESULTS = Path(__file__).with_name("results.json")
PACKAGES = ("tinygptv", "onnxruntime", "ray", "pyarrow", "numpy")
SETTINGS = {"model": "none", "bundle": "", "question": "", "max_new_tokens": "", "template": ""}
ACTOR_BYTES = 100_000_000


def draw(folder: Path, count: int, size: int) -> None:
    """Pictures of one shape each on a plain ground, no two the same."""
    random = np.random.default_rng(0)
    for number in range(count):
        picture = np.empty((size, size, 3), np.uint8)
        picture[:] = random.integers(0, 256, 3)
        left, top = random.integers(0, size // 2, 2)
        picture[top : top + size // 3, left : left + size // 3] = random.integers(0, 256, 3)
        Image.fromarray(picture).save(folder / f"{number:06}.png", compress_level=1)


def overhead(options: argparse.Namespace) -> None:
    """Whole processes, alternating; with --few, by what further pictures take, which leaves out how both begin."""
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        shared = [] if options.bundle is None else ["--bundle", str(options.bundle), "--max-new-tokens", "32"]
        ways: dict[str, list[str]] = {"one machine": [], "Ray": ["--ray"]}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        counts = [count for count in (options.few, options.pictures) if count]
        for count in counts:
            Path(work, str(count)).mkdir()
            draw(Path(work, str(count)), count, 64 if options.bundle is None else 448)
        for turn in range(options.rounds):
            for way in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                took = []
                for count in counts:
                    output = f"{work}/{turn} {count} {way}" + ("" if ways[way] else ".jsonl")
                    command = ["tinygptv", "caption", f"{work}/{count}", "-o", output, "--json", *shared, *ways[way]]
                    started = time.perf_counter()
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    took.append(time.perf_counter() - started)
                    assert json.loads(done.stdout)["captioned"] == count, done.stdout
                seconds[way].append(took[-1] - took[0] if options.few else took[0])
                print(f"{way}: {took}", flush=True)
            ratios = [ray / one for one, ray in zip(*seconds.values(), strict=True)]
            made = {
                "pictures": options.pictures - options.few,
                "after": options.few,
                "seconds": seconds,
                "ratio": statistics.median(ratios),
                "ratios": ratios,
            }
            save(f"overhead {'demo' if options.bundle is None else 'full size'}", made)  # a round can take an hour


def memory(options: argparse.Namespace) -> None:
    """What all actors together have, at the most at once."""
    import ray
    from tinygptv.runtime import AnswerOptions
    from tinygptv.runtime.cluster import caption_dataset

    found = {}
    for count in (1, 2, 4):
        with tempfile.TemporaryDirectory(dir=options.work) as work, _cluster(4), Watch() as watch:
            draw(Path(work), count * 4, 448)
            files = [{"image": str(path)} for path in sorted(Path(work).iterdir())]
            read = ray.data.from_items(files, override_num_blocks=count)
            with_captions = caption_dataset(
                read,
                bundle=options.bundle,
                actors=count,
                threads=1,
                cores_left=0,
                batch_size=8,
                options=AnswerOptions(max_new_tokens=8),
            )
            rows = with_captions.take_all()
            assert len(rows) == len(files) and all(row["text"] is not None for row in rows)
        found[str(count)] = watch.most[count]
        print(count, {name: f"{value / 1e9:.2f} GB" for name, value in watch.most[count].items()}, flush=True)
    save("memory", found)


class Watch:
    """Samples the memory of all actors; the most, by how many they are."""

    def __init__(self) -> None:
        self.most: dict[int, dict[str, int]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.3):
            sums: dict[str, int] = {}
            count = 0
            for process in psutil.process_iter(["cmdline"]):
                if not (process.info["cmdline"] or [""])[0].startswith("ray::MapWorker"):
                    continue
                text = ""
                try:
                    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                except OSError:
                    continue
                count += 1
                fields = {line.split(":")[0]: int(line.split()[1]) << 10 for line in text.splitlines()[1:]}
                for name, field in (("resident", "Rss"), ("proportional", "Pss"), ("anonymous", "Anonymous")):
                    sums[name] = sums.get(name, 0) + fields[field]
            for name, value in sums.items():
                most = self.most.setdefault(count, {})
                most[name] = max(most.get(name, 0), value)


@contextmanager
def _cluster(*cpus: int) -> Iterator[None]:
    """A node with so many cores each, whatever this machine has; the driver's own has none."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 500_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for count in cpus:
            cluster.add_node(num_cpus=count, object_store_memory=200_000_000, memory=count << 32)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.data.DataContext.get_current().wait_for_min_actors_s = 600  # so many take minutes to start on two cores
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def sleeper(seconds: float) -> Callable[[Iterable[object]], Iterator[tuple[int, Captioned]]]:
    """A model that takes so long for each picture; its caption says when it began and ended, and who it was."""

    def caption(images: Iterable[object]) -> Iterator[tuple[int, Captioned]]:
        for number, _ in enumerate(images):
            started = time.time()
            if seconds:
                time.sleep(seconds)
            yield number, Captioned(f"{started} {time.time()} {os.getpid()}", "stop", (), None)

    return caption


def tables(folder: str, rows: int, files: int) -> None:
    """Parquet tables of tiny pictures."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "png")
    for number in range(files):
        start = number * (rows // files)
        images = [file.getvalue() + row.to_bytes(8, "big") for row in range(start, start + rows // files)]
        parquet.write_table(pa.table({"image": images}), Path(folder, f"{number:04}.parquet"), row_group_size=1000)


def scaling(options: argparse.Namespace) -> None:
    """How much of the time actors compute, from when the last has begun until the first has nothing more to do."""
    found = {}
    for count in options.actors:
        nodes = [min(count, 8)] * max(1, count // 8)
        with tempfile.TemporaryDirectory(dir=options.work) as work, _cluster(*nodes):
            tables(Path(work), count * options.each, max(count, 2))
            intervals, _ = _run(work, count, partial(sleeper, options.sleep))
        by_actor: dict[str, list[tuple[float, float]]] = {}
        for start, end, actor in intervals:
            by_actor.setdefault(actor, []).append((start, end))
        begin = max(min(start for start, _ in each) for each in by_actor.values())
        stop = min(max(end for _, end in each) for each in by_actor.values())
        busy = sum(max(0, min(end, stop) - max(start, begin)) for start, end, _ in intervals)
        whole = max(end for _, end, _ in intervals) - begin
        left = sum(max(0, end - max(start, begin)) for start, end, _ in intervals)
        found[str(count)] = {
            "nodes": len(nodes),
            "pictures": len(intervals),
            "seconds_a_picture": options.sleep,
            "window_seconds": stop - begin,
            "efficiency": busy / (count * (stop - begin)),
            "efficiency_with_the_end": left / (count * whole),
        }
        print(count, found[str(count)], flush=True)
    save("scaling", found)


def rows(options: argparse.Namespace) -> None:
    """The driver's memory, each hundredth of the way."""
    share_one_heap()  # as the command does
    with tempfile.TemporaryDirectory(dir=options.work) as work, _cluster(2):
        tables(Path(work), options.rows, options.rows // 10_000)
        started = time.perf_counter()
        intervals, samples = _run(work, 2, partial(sleeper, 0.0), keep=False)
        seconds = time.perf_counter() - started
    assert not intervals
    save("rows", {"rows": options.rows, "seconds": seconds, "driver_anonymous_bytes": samples})


def _run(
    folder: str, actors: int, make: Callable[[], Any], keep: bool = True
) -> tuple[list[tuple[float, float, str]], list[int]]:
    """A run as the command does it, with another model; what its captions say, and the driver's memory meanwhile."""
    process, samples = psutil.Process(), []
    counts = Counts()
    with tempfile.TemporaryDirectory() as place, open_output(f"{place}/out", SETTINGS) as output:
        work = plan(find([folder], is_table=True), output.done(retry_failed=False))
        total = len(work.is_done)

        def step(_: object) -> None:
            if counts.captioned >= len(samples) * total // 100:
                samples.append(process.memory_info().rss - process.memory_info().shared)

        room, queue = Actors(actors, 1, ACTOR_BYTES), ahead(total, actors, AT_ONCE)
        captions = (captioned_batches(batches, make, room, queue) for batches in datasets(work, None, AT_ONCE))
        write(work, captions, output, counts, step)
        output.flush()
        assert (counts.captioned, counts.failed) == (total, 0)
        found = parquet.read_table(f"{place}/out", columns=["source", "row", "text"])
        keys = found.group_by(["source", "row"]).aggregate([])
        assert len(found) == len(keys) == total
        texts = found.column("text").to_pylist() if keep else []
    return [(float(a), float(b), c) for a, b, c in map(str.split, texts)], samples


def save(what: str, made: dict[str, Any]) -> None:
    """Writes a section of results.json, with this machine's description."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found[what] = {"date": datetime.now(UTC).date().isoformat(), "machine": describe(PACKAGES), "found": made}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "overhead": overhead,
    "memory": memory,
    "scaling": scaling,
    "rows": rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--bundle", type=Path, help="of a full-size model (default: the demo)")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--few", type=int, default=0, help="pictures of a first run that is taken off (default: none)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--each", type=int, default=2048, help="pictures an actor in scaling (default: 2048)")
    parser.add_argument("--sleep", type=float, default=0.25, help="seconds a picture in scaling (default: 0.25)")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    COMMANDS[options.what](options)


if __name__ == "__main__":
    main()
