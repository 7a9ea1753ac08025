"""nanoGPT's recipe for one GPU, trained by `transformer.train` to its loss."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.lab.card.device import is_toy
from transformer.config import load_file, override
from transformer.errors import Stopped
from transformer.train import train

ROOT = Path(__file__).parent.parent.parent.parent
CONFIG = ROOT / "configs" / "nanogpt_gpu.py"
# Where Tiny Shakespeare's input.txt is looked for; it is not part of this project.
VARIABLE = "TINYSHAKESPEARE"
PLACES = ("data/tinyshakespeare/input.txt", "input.txt")
PUBLISHED = 1.4697
TOY = {
    "steps": 4, "model.num_layers": 1, "model.d_model": 16, "model.d_ff": 16, "model.num_heads": 2, "data.max_len": 16,
    "data.buckets": (16,), "data.batch_tokens": 128, "model.max_positions": 16, "logging.evaluate_every": 2,
    "model.dtype": "float32",
}  # fmt: skip


def text() -> Path | None:
    """The text: of the environment, or in the tree; None where it is not there."""
    named = os.environ.get(VARIABLE)
    places = [Path(named)] if named else [ROOT / place for place in PLACES]
    return next((place for place in places if place.is_file()), None)


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """One row: the best validation loss, nats a character, and its step; the last; the median of a step's milliseconds.
    Where the time ends before the training, it is of the steps so far, and the same command goes on with it."""
    path = text()
    if path is None:
        yield {"what": "nanoGPT", "skipped": f"Tiny Shakespeare is not here: put it at {PLACES[0]}, or set {VARIABLE}"}
        return
    config = override(
        load_file(CONFIG), {"data.target": str(path), "data.cache": str(folder / "cache"), "mesh.data": 1}
    )
    if is_toy():
        config = override(config, TOY)
    run = folder / "run"
    try:
        train(config, run)
    except Stopped:
        yield from _so_far(run, config.steps)
        raise
    yield from _so_far(run, config.steps)


def _so_far(run: Path, steps: int) -> Iterator[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    times = sorted(line["seconds_per_step"] for line in lines if "seconds_per_step" in line)
    if not losses:
        return
    best = min(losses, key=lambda step: losses[step])
    yield {
        "what": "nanoGPT",
        "best_loss": losses[best],
        "best_step": best,
        "last_loss": losses[max(losses)],
        "last_step": max(losses),
        "steps": steps,
        "milliseconds": 1000 * times[len(times) // 2] if times else None,
        "published": PUBLISHED,
    }
