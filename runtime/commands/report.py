"""An answer as JSON, and its statistics as text."""

from __future__ import annotations

import dataclasses

from ..answer import Answer
from ..system.process import anonymous_rss, peak_rss


def document(answer: Answer) -> dict[str, object]:
    """An answer as a dictionary for ``json.dumps``."""
    found = dataclasses.asdict(answer)
    del found["logprobs"]  # no command asks for them
    found["peak_rss_bytes"] = peak_rss()
    found["anonymous_bytes"] = anonymous_rss()  # at the end of the answer, which is about its most
    return found


def statistics(answer: Answer, load_seconds: float) -> str:
    """Times, speed and memory, one value a line."""
    timings = answer.timings
    anonymous = anonymous_rss()
    kept = "" if anonymous is None else f", {anonymous / 1e9:.2f} GB at the end not backed by files"
    speed = f"{timings.decode_tokens_per_second:.1f} tokens/s" if timings.decode_tokens_per_second else "-"
    rows = (
        ("load", f"{load_seconds:.3f} s"),
        ("preprocess", f"{timings.preprocess:.3f} s"),
        ("image encode", f"{timings.image_encode:.3f} s"),
        ("projector", f"{timings.projector:.3f} s"),
        ("prefill", f"{timings.prefill:.3f} s ({answer.prompt_tokens} tokens)"),
        ("time to first token", f"{timings.time_to_first_token:.3f} s"),
        ("decode", f"{speed} ({len(answer.token_ids)} tokens, finished by {answer.finish_reason})"),
        ("peak RSS", f"{peak_rss() / 1e9:.2f} GB{kept}"),
    )
    return "\n".join(f"{name:>20}  {value}" for name, value in rows)
