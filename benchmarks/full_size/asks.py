"""What measure.py found, as text."""

from __future__ import annotations

from typing import Any

from reporting import wrapped

FAMILIES = {"tinygpt-v": "TinyGPT-V", "llava-phi": "LLaVA-Phi", "tinyllava": "TinyLLaVA"}
"""Names in the results file, in the tables' order, and what a reader knows them by."""
MODES = {
    "default": "`tinygptv ask`",
    "low memory": "`--memory low`",
    "tuned": "tuned",
    "tuned, low memory": "tuned, `--memory low`",
}
FP32 = "the same model in fp32 graphs"
COLUMNS = {
    "load": ("load, s", 1),
    "image_encode": ("image, s", 1),
    "prefill": ("prompt, s", 1),
    "time_to_first_token": ("first token, s", 1),
    "decode_tokens_per_second": ("tokens/s", 1),
    "process": ("whole process, s", 1),
    "peak_rss_bytes": ("peak, GB", 1e9),
    "anonymous_bytes": ("of it not reclaimable, GB", 1e9),
}
"""Figures, what they are called in the table, and their unit."""
Figures = dict[str, dict[str, Any]]


def _cells(figures: Figures) -> list[str]:
    return [f"{figures[name]['median'] / unit:.1f}" for name, (_, unit) in COLUMNS.items()]


def _lines(header: list[str], rows: list[list[str]], names: int) -> str:
    """A Markdown table whose first ``names`` columns hold words."""
    lines = [header, ["---"] * names + ["--:"] * (len(header) - names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(document: dict[str, Any]) -> str:
    """A question about a photo, by mode and by family, of those that were measured."""
    rows = []
    for family, name in FAMILIES.items():
        if family not in document:
            continue
        measured = document[family]["ask"]["modes"]
        rows += [[name, text, *_cells(measured[mode])] for mode, text in MODES.items() if mode in measured]
        if "fp32" in document[family]:
            rows.append([name, FP32, *_cells(document[family]["fp32"]["modes"]["fp32"])])
    return _lines(["model", "a question about a photo", *(column for column, _ in COLUMNS.values())], rows, 2)


def exports(document: dict[str, Any]) -> str:
    """What an export takes and makes, by family, and how soon a first and a second question are answered."""
    rows = []
    for family, name in FAMILIES.items():
        made, asked = document[family]["export"], document[family]["ask"]
        default, again = asked["modes"]["default"], asked["second question"]
        times = [
            cell
            for way in ("calibrated", "not calibrated")
            for cell in (
                [f"{made[way]['seconds']:.0f}", f"{made[way]['peak_rss_bytes'] / 1e9:.1f}"]
                if way in made
                else ["-"] * 2
            )
        ]
        rows.append(
            [
                name,
                f"{made['bundle']['source_bytes'] / 1e9:.1f}",
                f"{made['bundle']['bytes'] / 1e9:.1f}",
                *times,
                f"{default['prompt_tokens']['median']}",
                f"{default['time_to_first_token']['median']:.1f}",
                f"{again['cached_tokens']['median']}",
                f"{again['time_to_first_token']['median']:.1f}",
            ]
        )
    header = ["model", "files, GB", "bundle, GB", "export, s", "its peak, GB", "not calibrated, s", "its peak, GB"]
    header += ["tokens of the prompt", "first token, s", "cached tokens of a second question", "its first token, s"]
    return _lines(header, rows, 1)


def measured_with(document: dict[str, Any]) -> str:
    """The day, the machine and the versions of each section, those alike together."""
    sections: dict[str, list[str]] = {}
    for family, name in FAMILIES.items():
        for section, found in document[family].items():
            machine = found["machine"]
            sets = ", ".join(machine["instruction_sets"])
            versions = ", ".join(f"{package} {machine[package]}" for package in ("onnxruntime", "numpy", "torch"))
            threads = document[family]["ask"]["threads"]
            text = f"{found['date']}, {threads} threads of {machine['cpu']} ({sets}), {machine['system']}, {versions}"
            sections.setdefault(text, []).append(f"{name} {section}")
    return "\n".join(wrapped(f"- {text}: {'; '.join(names)}.") for text, names in sections.items())


def summary(document: dict[str, Any]) -> str:
    """The figures that a reader of README asks for first: one line for each family."""
    columns = {name: COLUMNS[name] for name in ("load", "time_to_first_token", "decode_tokens_per_second")}
    columns["peak_rss_bytes"] = ("memory, GB", 1e9)
    rows = []
    for family, name in FAMILIES.items():
        figures = document[family]["ask"]["modes"]["default"]
        bundle = document[family]["export"]["bundle"]["bytes"]
        cells = [f"{figures[key]['median'] / unit:.1f}" for key, (_, unit) in columns.items()]
        rows.append([name, f"{bundle / 1e9:.1f}", *cells])
    ask = document["tinygpt-v"]["ask"]
    machine = ask["machine"]
    return f"{_lines(['model', 'bundle, GB', *(title for title, _ in columns.values())], rows, 1)}\n\n" + wrapped(
        f"Medians of {len(ask['modes']['default']['process']['samples'])} runs on {ask['threads']} threads of "
        f"{machine['cpu']}, with onnxruntime {machine['onnxruntime']}, int8 bundles of the published sizes and random "
        "weights: speed and memory do not depend on their values."
    )
