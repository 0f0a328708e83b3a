"""What measure.py found, as text."""

from __future__ import annotations

from typing import Any

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
    "anonymous_bytes": ("of it not to be taken back, GB", 1e9),
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
    """A question about a photo, by family and mode."""
    rows = []
    for family, name in FAMILIES.items():
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
    header += ["tokens of the prompt", "first token, s", "tokens kept for a second question", "its first token, s"]
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
    return "\n".join(f"- {text}: {'; '.join(names)}." for text, names in sections.items())


def prose(document: dict[str, Any]) -> str:
    """The figures as a paragraph for a reader of the README."""
    entry = document["tinygpt-v"]
    default, low, tuned = (entry["ask"]["modes"][mode] for mode in ("default", "low memory", "tuned"))
    made, machine = entry["export"], entry["ask"]["machine"]

    def median(figures: Figures, name: str, unit: float = 1) -> str:
        return f"{figures[name]['median'] / unit:.1f}"

    siblings = ", ".join(
        f"{FAMILIES[family]} {median(asked, 'time_to_first_token')} s "
        f"({median(asked, 'image_encode')} s of it for the image) and {median(asked, 'peak_rss_bytes', 1e9)} GB"
        for family in FAMILIES
        if family != "tinygpt-v"
        for asked in [document[family]["ask"]["modes"]["default"]]
    )
    return (
        f"At the published sizes ({made['bundle']['source_bytes'] / 1e9:.1f} GB of files, random weights), "
        f"{entry['ask']['threads']} threads of {machine['cpu']}, medians of {len(default['process']['samples'])} "
        f"runs with onnxruntime {machine['onnxruntime']}: the export of TinyGPT-V takes "
        f"{made['calibrated']['seconds']:.0f} s and {made['calibrated']['peak_rss_bytes'] / 1e9:.1f} GB of memory and "
        f"writes {made['bundle']['bytes'] / 1e9:.1f} GB; `tinygptv ask` then loads in {median(default, 'load')} s, has "
        f"the first token of its answer about a photo {median(default, 'time_to_first_token')} s later "
        f"({median(default, 'image_encode')} s of it for the image), writes "
        f"{median(default, 'decode_tokens_per_second')} tokens/s, and peaks at "
        f"{median(default, 'peak_rss_bytes', 1e9)} GB. With `--memory low` it peaks at "
        f"{median(low, 'peak_rss_bytes', 1e9)} GB; tuned, it loads in {median(tuned, 'load')} s, with "
        f"{median(tuned, 'anonymous_bytes', 1e9)} GB of memory that the system cannot take back. First token and peak "
        f"of the others: {siblings}.\n"
    )
