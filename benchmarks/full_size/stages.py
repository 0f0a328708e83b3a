"""Loads a model, asks it one question, and prints what each stage took as JSON; for a process of its own.

`tinygptv ask` encodes the picture while the language model is still being loaded, so its own stages wait for each
other. Here each has the machine for itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from tinygptv import TinyGPTV


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("question")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--memory", choices=("default", "low"), default="default")
    options = parser.parse_args()
    started = time.perf_counter()
    with TinyGPTV.load(options.bundle, threads=options.threads, memory=options.memory) as model:
        load = time.perf_counter() - started
        answer = model.ask(options.photo, options.question, max_new_tokens=options.max_new_tokens)
    print(json.dumps({"load": load, **dataclasses.asdict(answer.timings)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
