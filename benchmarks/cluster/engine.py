"""What measure.py and tests/cluster_kills.py found, as text, and what ten million pictures cost."""

from __future__ import annotations

from statistics import median
from typing import Any

from reporting import wrapped

FAMILIES = {"tinygpt-v": "TinyGPT-V", "llava-phi": "LLaVA-Phi", "tinyllava": "TinyLLaVA"}
PICTURES, TOKENS = 10_000_000, 30
SECONDS = ("preprocess", "image_encode", "projector", "prefill")
Document = dict[str, Any]


def costs(int8: Document, int4: Document, steps: Document) -> str:
    """Core-hours by family and tier, from the seconds of one question on two cores."""
    speedup = steps["medians"]["batch_speedup"]
    lines = [
        "| model | bundle | s a picture, 2 cores | pictures a core-hour | core-hours |",
        "| --- | --- | --: | --: | --: |",
    ]
    for tier, document in (("int8", int8), ("int4", int4)):
        for family, name in FAMILIES.items():
            if family not in document:
                continue
            asked = document[family]["ask"]
            modes = asked["modes"]["default"]
            once = sum(modes[part]["median"] for part in SECONDS)
            seconds = once + TOKENS / modes["decode_tokens_per_second"]["median"] / speedup
            core_hours = PICTURES * seconds * asked["threads"] / 3600
            each = PICTURES / core_hours
            lines.append(f"| {name} | {tier} | {seconds:.1f} | {each:.0f} | {core_hours:,.0f} |")
    cpu = int8["tinygpt-v"]["ask"]["machine"]["cpu"]
    text = (
        f"For captions of {TOKENS} tokens, from the seconds that a question takes on two cores of an {cpu} "
        f"([benchmarks](benchmarks.md)); {steps['batch']} answers decoded together take {speedup:.1f} times less than "
        "one after the other. Times a cloud's price of a core-hour, this is the cost. Other processors differ by a "
        "factor of two and more: caption a hundred of your pictures first."
    )
    return "\n".join([*lines, "", wrapped(text)])


def memory(document: Document) -> str:
    """Of 1, 2 and 4 actors."""
    found = document["memory"]["found"]
    lines = ["| actors | in memory | of it their own | each of its own |", "| --: | --: | --: | --: |"]
    for count, sums in found.items():
        own, every = sums["anonymous"], sums["proportional"]
        lines.append(f"| {count} | {every / 1e9:.1f} GB | {own / 1e9:.1f} GB | {own / int(count) / 1e9:.2f} GB |")
    text = (
        "TinyGPT-V's full-size int8 bundle, one thread an actor, pictures of 448 pixels; shared pages are counted once "
        f"(PSS). {_machine(document, 'memory')}"
    )
    return "\n".join([*lines, "", wrapped(text)])


def measured(document: Document) -> str:
    """Overhead, scaling, a million rows."""
    lines = []
    for name, what in (("demo", "the demo"), ("full size", "the full-size int8 bundle of TinyGPT-V")):
        found = document[f"overhead {name}"]["found"]
        one, ray = (median(found["seconds"][way]) for way in ("one machine", "Ray"))
        lines.append(
            f"- {found['pictures']:,} pictures, {what}: {one:.0f} s on one machine, {ray:.0f} s with "
            f"`--ray` on the same ({'further pictures' if found['after'] else 'whole commands'}); ratio "
            f"{found['ratio']:.3f} ({_rounds(found['ratios'])})."
        )
    lines.append(
        "- Below 1, as two actors of one thread each are faster than one process of two threads. Ray's own processes, "
        "which look for news many times a second, take a part of that back: a smaller one where there are more cores."
    )
    each = [
        f"{found['efficiency']:.1%} with {count} {'actor' if count == '1' else 'actors'} on {found['nodes']} "
        f"{'node' if found['nodes'] == 1 else 'nodes'}"
        for count, found in document["scaling"]["found"].items()
    ]
    some = next(iter(document["scaling"]["found"].values()))
    lines.append(
        f"- Actors whose model only sleeps ({some['seconds_a_picture']} s a picture), on simulated nodes of this "
        f"machine: they compute {', '.join(each)} of the time between the last one's beginning and the first one's "
        "end."
    )
    rows = document["rows"]["found"]
    samples = rows["driver_anonymous_bytes"]
    quarter, half, end = (samples[len(samples) * part // 4 - 1] / 1e6 for part in (1, 2, 4))
    lines.append(
        f"- {rows['rows']:,} rows with a model that does nothing: {rows['seconds']:.0f} s, so Ray hands out "
        f"{rows['rows'] / rows['seconds']:,.0f} a second at most here; the command's own process has {quarter:.0f} MB "
        f"after a quarter of them, {half:.0f} MB after a half, {end:.0f} MB at the end."
    )
    lines.append(f"- {_machine(document, 'overhead demo', 'overhead full size', 'scaling', 'rows')}")
    return "\n".join(wrapped(line) for line in lines)


def kills(found: Document) -> str:
    """What died, and what came of it."""
    killed = ", ".join(f"{what}s {count}" for what, count in found["killed"].items())
    return wrapped(
        f"{found['date']}, seed {found['seed']}: {found['runs']} runs over {found['pictures_a_run']} pictures each. "
        f"Killed: {killed}. Missing rows: {found['missing']}, rows there twice: {found['twice']}, other captions: "
        f"{found['other captions']}."
    )


def _rounds(ratios: list[float]) -> str:
    if len(ratios) == 1:
        return "one round"
    return f"median of {len(ratios)} alternating rounds: {min(ratios):.3f} to {max(ratios):.3f}"


def _machine(document: Document, *parts: str) -> str:
    """The day and processor of the parts, and the first one's cores and versions."""
    measured: dict[str, list[str]] = {}
    for part in parts:
        measured.setdefault(f"{document[part]['date']}, {_processor(document[part]['machine'])}", []).append(part)
    found = [f"{', '.join(each)} {where}" for where, each in measured.items()]
    machine = document[parts[0]]["machine"]
    return (
        f"Measured: {'; '.join(found)}; {machine['cores']} cores, Ray {machine['ray']}, "
        f"onnxruntime {machine['onnxruntime']}."
    )


def _processor(machine: Document) -> str:
    return f"{machine['cpu']} ({', '.join(machine['instruction_sets'])})"
