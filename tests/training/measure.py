"""python tests/training/measure.py waiting|saving|compiling [--data=FOLDER] [--steps=100] [--config=co2]

The times that a long run is held to, each as a table. `waiting`: the share of a step that the host waits for data, for
the default configs (those whose data is in FOLDER, if named, as well). `saving`: how long a checkpoint holds up
training, beside the time between two of them. `compiling`: 24 scanned layers beside 6, without any cache.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from transformer.config import load_file, override

ROOT = Path(__file__).parents[2]
# Config -> what to change of it, for data that lies in a folder; without changes it needs none.
CONFIGS: dict[str, dict[str, str]] = {
    "quantities": {},
    "docstrings": {},
    "vit": {},
    "co2": {},
    "gpt": {"data.target": "tinyshakespeare/input.txt"},
    "multi30k": {"data.dir": "multi30k"},
}


def train(name: str, data: Path | None, steps: int, **changes: Any) -> list[dict[str, Any]]:
    """The training lines of the first steps of a config."""
    from transformer import train as verb

    found = {key: str((data or Path()) / path) for key, path in CONFIGS[name].items()}
    changes = {"steps": steps, "logging.evaluate_every": 0, "logging.log_every": steps // 4} | found | changes
    with tempfile.TemporaryDirectory() as folder:
        verb.train(override(load_file(ROOT / "configs" / f"{name}.py"), changes), Path(folder), quiet=True)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "seconds_per_step" in line]


def waiting(names: list[str], data: Path | None, steps: int) -> None:
    print("| config | milliseconds a step | of them waiting for data |\n| --- | ---: | ---: |")
    for name in names:
        lines = train(name, data, steps)[1:]  # the first one compiles
        seconds = statistics.mean(line["seconds_per_step"] for line in lines)
        waited = statistics.mean(line["seconds_per_step"] * line["data_share"] for line in lines)
        print(f"| {name} | {1000 * seconds:.1f} | {waited / seconds:.2%} |", flush=True)


def saving(names: list[str], data: Path | None, steps: int) -> None:
    """Saves every tenth of the steps, so more often than configured; the first save, which compiles, stands apart."""
    from transformer.training.checkpoint import Checkpoints

    save, held = Checkpoints.save, []

    def timed(*arguments: Any) -> None:
        began = time.monotonic()
        save(*arguments)
        held.append(time.monotonic() - began)

    Checkpoints.save = timed  # type: ignore[method-assign]
    print("| config | a save holds up (s) | the first | between saves, as configured (s) | share |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in names:
        held.clear()
        every = steps // 10
        lines = train(name, data, steps, **{"logging.checkpoint_every": every, "logging.log_every": every})
        between = load_file(ROOT / "configs" / f"{name}.py").logging.checkpoint_every
        between *= statistics.median(line["seconds_per_step"] for line in lines[1:])
        usual = statistics.mean(held[1:])
        print(f"| {name} | {usual:.3f} | {held[0]:.3f} | {between:.0f} | {usual / between:.2%} |", flush=True)


def compiling() -> None:
    import jax
    import numpy as np

    from tests.training.tiny import Made, ragged, tiny

    jax.config.update("jax_enable_compilation_cache", False)
    seconds: dict[int, list[float]] = {6: [], 24: []}
    for _ in range(3):
        for layers, times in seconds.items():
            jax.clear_caches()
            wide = {"model.d_model": 64, "model.d_ff": 256, "model.num_layers": layers, "model.scan_layers": True}
            made = Made(tiny(**wide, **{"mesh.data": 1}))
            state = jax.eval_shape(made.create, np.uint32(0))
            began = time.process_time()
            made.step.jitted.lower(state, ragged(0), np.uint32(0)).compile()
            times.append(time.process_time() - began)
    few, many = (min(times) for times in seconds.values())
    print("| 6 layers (s of processor time) | 24 layers | ratio |\n| ---: | ---: | ---: |")
    print(f"| {few:.2f} | {many:.2f} | {many / few:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["waiting", "saving", "compiling"])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--config", choices=CONFIGS, action="append", help="all, where none is named")
    arguments = parser.parse_args()
    names = arguments.config or [name for name, needed in CONFIGS.items() if arguments.data or not needed]
    if arguments.what == "compiling":
        compiling()
    else:
        {"waiting": waiting, "saving": saving}[arguments.what](names, arguments.data, arguments.steps)
