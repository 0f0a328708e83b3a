"""From runs to figures: medians with their spread, and ratios that were taken within one round."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

Result = Mapping[str, Any]
"""What an adapter printed."""
Run = Mapping[str, Any]
"""contender, beside (the peer that the run is paired with), round, result."""


def samples_of(result: Result) -> dict[str, list[float]]:
    """Every figure of one process, each with all its samples; seconds or bytes, as the name says."""
    samples = {"load_seconds": [result["load_seconds"]]}
    if "encode_seconds" in result:
        samples["encode_seconds"] = result["encode_seconds"]
    else:
        samples |= {f"prefill_{length}_seconds": values for length, values in result["prefill"].items()}
        samples["decode_step_seconds"] = result["decode_step_seconds"]
        if result["decode_1500_step_seconds"] is not None:
            samples["decode_1500_step_seconds"] = result["decode_1500_step_seconds"]
    return samples | {name: [value] for name, value in result["memory"].items()}


def summarise(runs: Iterable[Run]) -> dict[str, dict[str, dict[str, float]]]:
    """Contender to figure to: the median of the runs' medians, and the smallest and largest of all samples."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for run in runs:
        for name, samples in samples_of(run["result"]).items():
            found.setdefault(run["contender"], {}).setdefault(name, []).append(samples)
    return {
        contender: {
            name: {
                "median": statistics.median(map(statistics.median, groups)),
                "min": min(map(min, groups)),
                "max": max(map(max, groups)),
                "runs": len(groups),
            }
            for name, groups in figures.items()
        }
        for contender, figures in found.items()
    }


def ratios(runs: Iterable[Run]) -> dict[str, dict[str, dict[str, Any]]]:
    """Peer to figure to: this project over the peer in each round, and the median over rounds.

    Of seconds, how many times as fast this project is (above 1 is better); of bytes, how many times as much memory it
    takes (below 1 is better). Both medians are of the two processes that ran one after the other.
    """
    pairs: dict[tuple[str, int], dict[bool, Result]] = {}
    for run in runs:
        is_peer = run["contender"] == run["beside"]
        pairs.setdefault((run["beside"], run["round"]), {})[is_peer] = run["result"]
    rounds: dict[str, dict[str, list[float]]] = {}
    for (peer, _), pair in sorted(pairs.items(), key=lambda item: item[0][1]):
        if len(pair) < 2:
            continue  # one of the two failed
        ours, theirs = samples_of(pair[False]), samples_of(pair[True])
        for name in ours.keys() & theirs.keys():
            top, bottom = statistics.median(ours[name]), statistics.median(theirs[name])
            if name.endswith("_seconds"):
                top, bottom = bottom, top
            if bottom:  # a process may hold no pages of files
                rounds.setdefault(peer, {}).setdefault(name, []).append(top / bottom)
    return {
        peer: {name: {"median": statistics.median(values), "rounds": values} for name, values in sorted(found.items())}
        for peer, found in rounds.items()
    }
