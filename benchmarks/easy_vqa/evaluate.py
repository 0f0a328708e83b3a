"""Measures the trained model on the package's test split: torch in fp32, and bundles through the public API.

    python benchmarks/easy_vqa/evaluate.py --model DIR/model --int8 BUNDLE --fp32 BUNDLE -o JSON --readme docs/demo.md

All of them answer the same questions greedily. The table goes between the page's two ``easy-vqa`` comments.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from answering import MAX_NEW_TOKENS, answer_all
from pictures import Split, load_test, load_training
from save import ARCHITECTURE_FILE, PHI_FOLDER, QFORMER_FILE, STAGE_FILE, VISION_FILE
from scoring import Item, derived_items, package_items, score
from tinygptv.export.sources import open_model
from tinygptv.export.verify.oracle import Oracle, load
from tqdm import tqdm
from vocabulary import Vocabulary

from tinygptv import TinyGPTV

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe, describe_bundle, wrapped, write_section

PACKAGES = ("tinygptv", "easy-vqa", "numpy", "onnxruntime", "pillow", "tokenizers", "torch", "transformers")
ROWS = {
    "overall": "all {questions:,} questions",
    "yes/no": "yes or no",
    "negated": "of these, negated",
    "open": "open (shape or colour)",
    "caption": "captions",
    "refer iou": "boxes, `[refer]`: mean IoU",
    "detection iou": "boxes, `[detection]`: mean IoU",
}
"""Figures in the order of the table, and what they are called there."""


def answer_with_torch(model_folder: Path, split: Split, items: Sequence[Item]) -> list[str]:
    """Answers with the torch model in fp32, from the four files."""
    published = open_model(
        phi=model_folder / PHI_FOLDER,
        vision=model_folder / VISION_FILE,
        qformer=model_folder / QFORMER_FILE,
        checkpoint=model_folder / STAGE_FILE,
        stage=4,
        architecture=model_folder / ARCHITECTURE_FILE,
    )
    model = Oracle(published.networks).eval()
    load(model, published)
    vocabulary = Vocabulary.load(model_folder / PHI_FOLDER)
    return answer_all(model, vocabulary, split.pixels, [(item.picture, item.question) for item in items])


def answer_with_bundle(bundle: Path, split: Split, items: Sequence[Item]) -> list[str]:
    """Answers as a program that uses the runtime would, encoding each picture once."""
    paths = list(split.paths.values())
    answers = [""] * len(items)
    by_picture: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        by_picture.setdefault(item.picture, []).append(index)
    with TinyGPTV.load(bundle) as model:
        for picture, indices in tqdm(by_picture.items(), desc=bundle.name, unit="picture"):
            image = model.encode_image(paths[picture])
            for index in indices:
                answer = model.ask(image, items[index].question, max_new_tokens=MAX_NEW_TOKENS)
                answers[index] = answer.text.strip()
    return answers


def mistakes(items: Sequence[Item], answers: Sequence[str]) -> list[dict[str, object]]:
    """Lists the wrong answers to the package's questions, and the wrong captions."""
    return [
        {"picture": item.picture, "question": item.question, "expected": item.expected, "answer": answer}
        for item, answer in zip(items, answers, strict=True)
        if item.group not in ("refer", "detection") and answer != item.expected
    ]


def table(result: dict[str, Any]) -> str:
    """The figures of all systems as a Markdown table, and how often two of them give the same answer."""
    systems = result["systems"]
    lines = [
        f"| {result['split']} split, {result['pictures']:,} pictures | {' | '.join(systems)} |",
        f"| --- |{' --- |' * len(systems)}",
    ]
    for key, name in ROWS.items():
        figures = [system["figures"][key] for system in systems.values()]
        shown = [f"{figure:.3f}" if key.endswith("iou") else f"{figure:.2%}" for figure in figures]
        lines.append(f"| {name.format(questions=result['questions'])} | {' | '.join(shown)} |")
    same = "; ".join(f"{pair} {share:.2%}" for pair, share in result["same_text"].items())
    return "\n".join([*lines, "", wrapped(f"Answers with the same text, boxes included: {same}.")])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder with the four files that train.py saved")
    parser.add_argument("--int8", type=Path, required=True, help="the bundle that is shipped")
    parser.add_argument("--int4", type=Path, help="the same model with a decoder of 4 bits")
    parser.add_argument("--fp32", type=Path, help="the same model as a bundle of fp32 graphs")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--readme", type=Path, help="Markdown file to put the table into")
    parser.add_argument("--validation", action="store_true", help="use the validation part instead of the test split")
    arguments = parser.parse_args(argv)

    split = load_training()[1] if arguments.validation else load_test()
    items = package_items(split) + derived_items(split)
    bundles = {"int8 bundle": arguments.int8, "int4 bundle": arguments.int4, "fp32 bundle": arguments.fp32}
    bundles = {name: bundle for name, bundle in bundles.items() if bundle is not None}
    answers: dict[str, list[str]] = {}
    systems: dict[str, dict[str, Any]] = {}
    for name in (*bundles, "torch fp32"):
        started = time.perf_counter()
        if name in bundles:
            answers[name] = answer_with_bundle(bundles[name], split, items)
        else:
            answers[name] = answer_with_torch(arguments.model, split, items)
        systems[name] = {
            "seconds": round(time.perf_counter() - started, 1),
            "figures": score(items, answers[name]),
            "mistakes": mistakes(items, answers[name]),
        }
        if name in bundles:
            systems[name] |= describe_bundle(bundles[name])
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(PACKAGES) | {"torch_threads": torch.get_num_threads()},
        "split": "validation" if arguments.validation else "test",
        "pictures": len(split.scenes),
        "questions": len(split.questions),
        "same_text": {
            f"{first} and {second}": sum(map(str.__eq__, answers[first], answers[second])) / len(items)
            for first, second in combinations(answers, 2)
        },
        "systems": systems,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    if arguments.readme is not None:
        write_section(arguments.readme, "easy-vqa", table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
