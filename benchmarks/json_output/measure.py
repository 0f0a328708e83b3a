"""What JSON output costs at Phi-2's vocabulary of 51,200 tokens, with each library that could rule tokens out.

A document that follows the schema is walked token by token, as if it were being generated. What is timed is all that a
step costs besides the model's own work: taking the last token, computing the mask, and applying it to the logits; of
``tinygptv`` it is what its server does, with llguidance below.

    pip install llguidance outlines-core             # and for xgrammar, without its CUDA compiler:
    pip install --no-deps xgrammar apache-tvm-ffi    # (it needs torch)
    python benchmarks/json_output/measure.py -o benchmarks/json_output/results.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinygptv.export.sources.tokenizer import build_tokenizer
from tinygptv.runtime.bundle.manifest import parse_manifest
from tinygptv.runtime.language.detokenize import Detokenizer
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.server.schema import ANY_OBJECT, Schemas
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, END_OF_TEXT = 51_200, 50_256
Logits = NDArray[np.float32]
Walk = Callable[[int | None, Logits], Logits]
"""Takes the token before, if there is one, and the logits; returns those to sample from."""

_THING = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "color": {"enum": ["red", "green", "blue"]},
        "box": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
    },
    "required": ["name", "color", "box"],
    "additionalProperties": False,
}
_LIST = {
    "type": "object",
    "properties": {"things": {"type": "array", "items": _THING}, "caption": {"type": "string"}},
    "required": ["things", "caption"],
    "additionalProperties": False,
}
_DOCUMENT = {
    "things": [{"name": f"ball {n}", "color": "green", "box": [n, 20, 340, 455]} for n in range(5)],
    "caption": "Five green balls lie on a wooden table, and a dog looks at them from the other side of the room.",
}
CASES: dict[str, tuple[dict[str, object], object]] = {
    "one object": (_THING, _DOCUMENT["things"][0]),
    "a list of objects": (_LIST, _DOCUMENT),
    "any object": (ANY_OBJECT, _DOCUMENT),
}


def tinygptv(tokenizer: Tokenizer) -> Callable[[dict[str, object]], Walk]:
    """As the server does it, with TinyGPT-V's stop string."""
    demo = parse_manifest(DEMO_BUNDLE)
    manifest = replace(demo, eos_token_ids=(END_OF_TEXT,))
    vars(manifest)["contract"] = replace(demo.contract, vocab_size=VOCABULARY)  # where the property keeps it
    schemas = Schemas(tokenizer, manifest)
    _ = schemas._vocabulary  # what is built once

    def begin(schema: dict[str, object]) -> Walk:
        process = schemas.processor(schema, "schema")()
        return lambda token, logits: process(() if token is None else (token,), logits)

    return begin


def llguidance(tokenizer: Tokenizer) -> Callable[[dict[str, object]], Walk]:
    """The library alone, applying its mask with its own numpy code."""
    from llguidance import LLMatcher, LLTokenizer
    from llguidance.numpy import allocate_token_bitmask, apply_token_bitmask_inplace, fill_next_token_bitmask

    own = LLTokenizer(tokenizer.to_str(), n_vocab=VOCABULARY, eos_token=END_OF_TEXT)
    mask = allocate_token_bitmask(1, VOCABULARY)

    def begin(schema: dict[str, object]) -> Walk:
        options: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        matcher = LLMatcher(own, LLMatcher.grammar_from_json_schema(schema, overrides=options))

        def step(token: int | None, logits: Logits) -> Logits:
            if token is not None:
                assert matcher.consume_token(token), matcher.get_error()
            fill_next_token_bitmask(matcher, mask)
            apply_token_bitmask_inplace(logits, mask)
            return logits

        return step

    return begin


def outlines_core(tokenizer: Tokenizer) -> Callable[[dict[str, object]], Walk]:
    """Its own numpy code needs numba, so that the mask is applied as in the server."""
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    ids: dict[bytes, list[int]] = {}
    for token, text in texts(tokenizer):
        if text:
            ids.setdefault(text, []).append(token)
    vocabulary = Vocabulary(END_OF_TEXT, ids)
    mask = np.zeros(VOCABULARY // 32, np.int32)

    def begin(schema: dict[str, object]) -> Walk:
        guide = Guide(Index(build_regex_from_schema(json.dumps(schema), " ?"), vocabulary))

        def step(token: int | None, logits: Logits) -> Logits:
            if token is not None:
                guide.advance(token, False)
            guide.write_mask_into(mask.ctypes.data, mask.size, mask.itemsize)
            return np.where(np.unpackbits(mask.view(np.uint8), bitorder="little").view(np.bool_), logits, -np.inf)

        return step

    return begin


def xgrammar(tokenizer: Tokenizer) -> Callable[[dict[str, object]], Walk]:
    """Its masks are torch tensors."""
    import torch
    import xgrammar as xgr

    own = [""] * VOCABULARY
    for token in range(VOCABULARY):
        own[token] = tokenizer.id_to_token(token) or ""
    info = xgr.TokenizerInfo(own, xgr.VocabType.BYTE_LEVEL, vocab_size=VOCABULARY, stop_token_ids=[END_OF_TEXT])
    compiler = xgr.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    mask = xgr.allocate_token_bitmask(1, VOCABULARY)

    def begin(schema: dict[str, object]) -> Walk:
        compiled = compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
        matcher = xgr.GrammarMatcher(compiled)

        def step(token: int | None, logits: Logits) -> Logits:
            if token is not None:
                assert matcher.accept_token(token)
            matcher.fill_next_token_bitmask(mask)
            xgr.apply_token_bitmask_inplace(torch.from_numpy(logits[np.newaxis]), mask)
            return logits

        return step

    return begin


LIBRARIES = {
    "tinygptv": (tinygptv, "llguidance"),
    "llguidance": (llguidance, "llguidance"),
    "outlines-core": (outlines_core, "outlines_core"),
    "xgrammar": (xgrammar, "xgrammar"),
}


def texts(tokenizer: Tokenizer) -> Iterator[tuple[int, bytes]]:
    """Each token and its text."""
    of = Detokenizer(tokenizer).token_bytes
    yield from ((token, of(token)) for token in range(VOCABULARY))


def measure(begin: Callable[[dict[str, object]], Walk], schema: dict[str, object], ids: list[int], repeats: int) -> Any:
    """Seconds: to read the schema, and of each step, the first apart, which may build what later ones use."""
    logits = np.random.default_rng(0).normal(size=VOCABULARY).astype(np.float32)
    compiles, firsts, steps = [], [], []
    for _ in range(repeats):
        started = time.perf_counter()
        walk = begin(schema)
        compiles.append(time.perf_counter() - started)
        for number, token in enumerate([None, *ids]):
            mine = logits.copy()
            started = time.perf_counter()
            scores = walk(token, mine)
            (steps if number else firsts).append(time.perf_counter() - started)
            following = [*ids, END_OF_TEXT][number]
            assert np.isfinite(scores[following]), f"{following} was ruled out at {number}"
    return {
        "compile_seconds": statistics.median(compiles),
        "first_step_seconds": statistics.median(firsts),
        "step_seconds": statistics.median(steps),
        "step_seconds_p99": float(np.quantile(steps, 0.99)),
        "steps": len(ids),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    tokenizer = build_tokenizer(ROOT / "tests" / "tokenizer", VOCABULARY)
    results: dict[str, Any] = {}
    for name, (make, module) in LIBRARIES.items():
        if find_spec(module) is None:
            print(f"{name}: not installed")
            continue
        started = time.perf_counter()
        begin = make(tokenizer)
        results[name] = {"version": version(module), "tokenizer_seconds": time.perf_counter() - started, "cases": {}}
        for case, (schema, document) in CASES.items():
            ids = tokenizer.encode(json.dumps(document)).ids
            try:
                found = measure(begin, schema, ids, options.repeats)
            except (AssertionError, ValueError) as error:  # a schema that the library cannot follow
                found = {"refused": str(error)[:200]}
            results[name]["cases"][case] = found
            print(name, case, found, flush=True)
    head = {"date": datetime.now(UTC).date().isoformat(), "vocabulary": VOCABULARY, "repeats": options.repeats}
    report = {**head, "machine": describe(("numpy", "tokenizers")), "libraries": results}
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
