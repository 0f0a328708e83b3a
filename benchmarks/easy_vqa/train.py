"""Trains the small TinyGPT-V on ``easy-vqa`` and saves it as the four files that a user of the published model brings.

    python benchmarks/easy_vqa/train.py -o DIR            # about an hour on two cores; the files are in DIR/model
    python benchmarks/easy_vqa/train.py -o DIR --resume   # goes on after Ctrl-C or a crash

On Linux, MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000 in the environment keep freed memory for the next step
(giving it back otherwise takes a third of the time); OMP_WAIT_POLICY=PASSIVE helps on a machine that others use, too.

Every random choice is drawn from (seed, phase, step), so that a resumed run draws what an unbroken one would have.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from network import VisionHeads, build_model
from phases import PHASES, Batch, Phase
from pictures import load_training
from save import save_model
from torch import nn
from tqdm import tqdm
from vocabulary import build_vocabulary

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reporting import describe

PACKAGES = ("easy-vqa", "numpy", "tokenizers", "torch", "transformers")
SEED = 20
CHECKPOINT_SECONDS = 180
LOG_STEPS = 50


class Run:
    """One training run in one folder: the model, where it stands, and its log."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(SEED)
        self.folder = folder
        self.model = build_model()
        self.heads = VisionHeads()
        self.phase_index = 0
        self.prepared = 0
        """How many phases have made their changes to the model's modules."""
        self.step = 0
        self.optimizer_state: dict[str, Any] | None = None
        self.log: dict[str, Any] = {
            "seed": SEED,
            "seconds": 0.0,
            "machine": describe(PACKAGES) | {"threads": torch.get_num_threads()},
            "phases": {},
        }

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Writes the checkpoint and the log, each in one rename."""
        state = {
            "phase_index": self.phase_index,
            "prepared": self.prepared,
            "step": self.step,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "log": json.dumps(self.log),
        }
        partial = self.checkpoint_path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint_path)
        partial = self.folder / "training.json.partial"
        partial.write_text(json.dumps(self.log, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.folder / "training.json")

    def prepare(self, phases: int) -> None:
        """Lets the first ``phases`` phases make their changes to the model's modules, once each."""
        for phase in PHASES[self.prepared : phases]:
            phase.prepare(self.model)
        self.prepared = phases

    def load(self) -> None:
        """Goes back to where the checkpoint was written."""
        state = torch.load(self.checkpoint_path, weights_only=True)
        self.phase_index, self.step = state["phase_index"], state["step"]
        self.prepare(state["prepared"])
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer_state = state["optimizer"]
        self.log = json.loads(state["log"])


def train(run: Run) -> None:
    """Runs what is left of all phases."""
    training, validation = load_training()
    while run.phase_index < len(PHASES):
        phase = PHASES[run.phase_index]
        run.prepare(run.phase_index + 1)
        phase.bind(training, validation)
        train_phase(run, phase)
        run.phase_index, run.step, run.optimizer_state = run.phase_index + 1, 0, None
        run.save(None)
    save_model(run.model, build_vocabulary(training), run.folder / "model")


def train_phase(run: Run, phase: Phase) -> None:
    """Runs what is left of one phase, drawing each step's batch while the one before it is trained on."""

    def draw(step: int) -> Batch:
        return phase.draw(np.random.default_rng([SEED, run.phase_index, step]))

    groups = phase.parameter_groups(run.model, run.heads)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
    if run.optimizer_state is not None:
        optimizer.load_state_dict(run.optimizer_state)
    entries = run.log["phases"].setdefault(phase.name, [])
    losses: list[float] = []
    clock = saved = time.monotonic()
    drawer = ThreadPoolExecutor(max_workers=1)
    coming = drawer.submit(draw, run.step)
    bar = tqdm(total=phase.steps, initial=run.step, desc=phase.name, mininterval=5)
    try:
        while run.step < phase.steps:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(run.step, phase.steps)
            batch, coming = coming.result(), drawer.submit(draw, run.step + 1)
            with torch.autocast("cpu", torch.bfloat16):
                loss = phase.loss(run.model, run.heads, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            run.step += 1
            losses.append(loss.item())
            bar.update()

            now = time.monotonic()
            run.log["seconds"] += now - clock
            clock = now
            validate = run.step % phase.validation_steps == 0 or run.step == phase.steps
            if run.step % LOG_STEPS == 0 or validate:
                entry: dict[str, Any] = {"step": run.step, "seconds": round(run.log["seconds"]), "loss": mean(losses)}
                losses.clear()
                if validate:
                    entry["validation"] = phase.validate(run.model, run.heads, complete=run.step == phase.steps)
                    tqdm.write(json.dumps(entry), file=sys.stderr)
                entries.append(entry)
                bar.set_postfix(loss=entry["loss"])
            if now - saved > CHECKPOINT_SECONDS:
                run.save(optimizer)
                saved = now
    except KeyboardInterrupt:
        run.save(optimizer)
        raise
    finally:
        bar.close()
        drawer.shutdown()


def schedule(step: int, steps: int) -> float:
    """Gives the share of the peak learning rate: 4% of the steps to rise, then a half cosine down to 2%."""
    warmup = 0.04 * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def mean(values: list[float]) -> float:
    """Averages losses, to as many digits as a log needs."""
    return round(sum(values) / len(values), 5)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for checkpoint, log and the model")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.output)
    if run.checkpoint_path.exists() != arguments.resume:
        found = "has" if run.checkpoint_path.exists() else "has no"
        parser.error(f"{arguments.output} {found} checkpoint.pt: --resume goes on from one, and a new run needs none")
    if arguments.resume:
        run.load()
    try:
        train(run)
    except KeyboardInterrupt:
        print(f"stopped; --resume goes on from {run.checkpoint_path}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
