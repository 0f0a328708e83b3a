"""The results of a comparison, as a table and as a JSON document."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from tinygptv.runtime.system.process import peak_rss

from .agreement import LayerAgreement
from .bounds import Checked
from .verification import Verification

COLUMNS = ("cosine, mean", "worst token", "rel. error", "own error")
LEGEND = (
    "rel. error: norm of the difference over norm of the reference, both from the same photos and texts\n"
    "own error: the same of this layer alone, the reference's layer given what the bundle's was given"
)


def table(found: Verification, checked: Sequence[Checked]) -> str:
    """Every layer, the inputs, and each bound with the measured value."""
    agreement = found.agreement
    width = 2 + max(len(layer.row) for layer in agreement.layers)
    lines: list[str] = []
    graph = ""
    for layer in agreement.layers:
        if layer.graph != graph:
            graph = layer.graph
            lines.append(f"{graph:<{width}}" + "".join(f"  {column:>12}" for column in COLUMNS))
        numbers = f"  {layer.cosine_mean:12.7f}  {layer.cosine_worst:12.7f}"
        numbers += f"  {layer.relative_error:12.3e}  {layer.own_error:12.3e}"
        lines.append(f"  {layer.row:<{width - 2}}{numbers}")
    lines += [
        LEGEND,
        "",
        f"{found.bundle} ({found.precision}), shown photos: {found.photos}, prompts: {found.prompts}, "
        f"positions of text in them: {agreement.positions}",
        f"KL at the worst of these positions: {agreement.kl_worst:.3e}",
        f"the layer that adds most: {_name(agreement.farthest)}",
    ]
    names = max(len(check["name"]) for check in checked)
    for check in checked:
        verdict = "holds" if check["holds"] else "DOES NOT HOLD"
        lines.append(f"  {check['name']:<{names}}  {check['value']:<13.7g}  {_expected(check):<18}  {verdict}")
    lines.append(f"compared in {found.seconds:.0f} s, with at most {peak_rss() / 1e9:.1f} GB of memory")
    return "\n".join(lines)


def failures(found: Verification, checked: Sequence[Checked]) -> str:
    """One line with the violated bounds, and where to look."""
    broken = [f"{c['name']} is {c['value']:.7g}, expected {_expected(c)}" for c in checked if not c["holds"]]
    return f"{'; '.join(broken)}; the layer that adds most: {_name(found.agreement.farthest)}"


def _name(layer: LayerAgreement) -> str:
    """A layer and its own error as text."""
    return f"{layer.graph} {layer.row} (own error {layer.own_error:.3e})"


def document(found: Verification, checked: Sequence[Checked]) -> dict[str, Any]:
    """The complete results for JSON; numbers that are not finite become None."""
    agreement = found.agreement
    written: dict[str, Any] = _finite(
        {
            "bundle": str(found.bundle),
            "precision": found.precision,
            "holds": all(check["holds"] for check in checked),
            "bounds": list(checked),
            "photos": found.photos,
            "prompts": found.prompts,
            "logits": {
                "positions": agreement.positions,
                "kl_mean": agreement.kl_mean,
                "kl_worst": agreement.kl_worst,
                "top1": agreement.top1,
            },
            "layers": [dataclasses.asdict(layer) for layer in agreement.layers],
            "seconds": found.seconds,
            "peak_rss_bytes": peak_rss(),
            "versions": {name: version(name) for name in ("tinygptv", "onnxruntime", "torch", "transformers")},
        }
    )
    return written


def _expected(check: Checked) -> str:
    return f"at {'most' if check['name'].startswith('max_') else 'least'} {check['bound']:g}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
