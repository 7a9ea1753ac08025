"""Does the fake differ from itself?

Hypothesis: learned is worse by two points, and has no value past its table; none is much worse; the window changes
nothing.

Source: made up, with known answers.
"""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import Config, from_dict, to_dict
from transformer.errors import Stopped, UserError

BASE = "configs/quantities.py"
REFERENCE = "sinusoidal-full"
TUNE = None
MAIN_METRICS = ["test/exact_match", "longer/exact_match", "test/loss"]
SHIFTS = {"sinusoidal": 0.0, "learned": -0.02, "none": -0.2}


def variants(base: Config) -> dict[str, dict[str, Any]]:
    kinds = {"full": "full", "window": "window:8"}
    return {
        f"{positions}-{name}": {"model.positions": positions, "model.attention": [kind]}
        for positions in SHIFTS
        for name, kind in kinds.items()
    }


@dataclasses.dataclass
class Fake:
    config: Config
    params: dict[str, Any]


def train(config: Config, workdir: Path) -> None:
    """Falls as a loss does. FAKE_FAULT="learned-full/1=raise" makes a run fail: raise, mistake, exit, kill or nan;
    stop ends it as a signal does."""
    place = f"{workdir.parent.name}/{workdir.name.removeprefix('seed')}"
    faults = dict(part.split("=") for part in os.environ.get("FAKE_FAULT", "").split(";") if part)
    fault = faults.get(place)
    print(f"training {place}")
    (workdir / "config.json").write_text(json.dumps(to_dict(config) | {"fault": fault}))
    seconds = 0.2 if config.model.positions == "learned" else 0.1
    with (workdir / "metrics.jsonl").open("w") as file:
        for step in range(0, config.steps + 1, max(config.steps // 20, 1)):
            loss = 1 + 5 * np.exp(-4 * step / config.steps) + 0.02 * _noise(config, step)
            file.write(json.dumps({"step": step, "loss": loss, "seconds_per_step": seconds}) + "\n")
    if fault == "raise":
        raise ValueError("the fake\nbroke")
    if fault == "stop":
        raise Stopped(f"the fake was stopped after step 7 of {config.steps}, which is saved")
    if fault == "mistake":
        raise UserError("the fake is too small: take a larger one")
    if fault == "exit":
        print("about to go", flush=True)
        os._exit(3)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def restore(workdir: Path) -> Fake:
    values = json.loads((workdir / "config.json").read_text())
    fault = values.pop("fault")
    config = from_dict(values)
    size = 1000 + 64 * (config.model.positions == "learned")
    table = np.full((size, 1), np.nan if fault == "nan" else 1.0)
    return Fake(config, {"params": {"embedder": {"table": table}}})


def measure(trained: Fake) -> dict[str, Any]:
    config = trained.config
    shift = SHIFTS[config.model.positions]
    quality = 0.97 + shift + 0.004 * _noise(config, 0) + 0.006 * _noise(config, -1, shared=True)
    if np.isnan(trained.params["params"]["embedder"]["table"]).any():
        quality = float("nan")
    learned = config.model.positions == "learned"
    rows = []
    for low in range(0, 64, 8):
        value = quality * min(1.0, 1.6 - low / 40) + 0.003 * _noise(config, low)
        values = {"exact_match": value, "token_accuracy": value**0.5}
        gone = learned and low >= 32
        rows.append(
            {"low": low, "high": low + 8, "count": 100 + low} | {k: None if gone else v for k, v in values.items()}
        )
    return {
        "metrics": {
            "test/exact_match": quality,
            "longer/exact_match": None if learned else quality / 2 + 0.02 * _noise(config, 1),
            "test/loss": 0.1 - shift,
        },
        "notes": ["The position table has 32 rows, and 400 of 400 sentences are longer."] if learned else [],
        "by_length": {
            "axis": "length of the longer side (tokens)",
            "trained_to": 30,
            "limit": 32 if learned else None,
            "metrics": ["exact_match", "token_accuracy"],
            "rows": rows,
        },
    }


def cost(base: Config) -> list[dict[str, Any]]:
    rates = {"full, dense": 1e-4, "window 8, banded": 4e-6}
    return [
        {"kind": kind, "length": n, "milliseconds": 0.3 * (kind != "full, dense") + rate * n**2, "rounds": 3}
        for n in (32, 64, 128, 256)
        for kind, rate in rates.items()
    ]


def _noise(config: Config, salt: int, shared: bool = False) -> float:
    own = 0 if shared else len(config.model.positions) + 7 * len(config.model.attention[0])
    return float(np.random.default_rng([config.seed, salt + 5, own]).standard_normal())
