"""python tests/training/kill.py --kills=30 [--folder=...]

Trains one tiny run undisturbed, and the same run killed again and again, at random moments, by SIGKILL and SIGTERM;
then compares the two final states bit for bit. Prints what happened, and exits with 1 where they differ.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def make_config(folder: Path, steps: int, checkpoint_every: int) -> Path:
    """A config file of a tiny translation model with dropout, over files that it writes."""
    drawn = random.Random(1)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 90), ("validation", 9), ("test", 9)):
        lines = ["".join(drawn.choices("abcdef ", k=drawn.randint(3, 20))).strip() or "a" for _ in range(count)]
        (data / f"{split}.en").write_text("".join(f"{line}\n" for line in lines))
        (data / f"{split}.de").write_text("".join(f"{line[::-1]}\n" for line in lines))
    changes = {
        "steps": steps,
        "model.num_layers": 1,
        "model.d_model": 8,
        "model.d_ff": 16,
        "model.num_heads": 2,
        "model.dropout": 0.2,
        "data.name": "files",
        "data.dir": str(data),
        "data.cache": str(folder / "cache"),
        "data.vocab_size": 280,
        "data.max_len": 32,
        "data.batch_tokens": 128,
        "data.buckets": (32,),
        "optimizer.warmup_steps": 5,
        "logging.log_every": 5,
        "logging.evaluate_every": 10,
        "logging.checkpoint_every": checkpoint_every,
    }
    path = folder / "config.py"
    path.write_text(
        "from transformer.config import Config, override, to_config_dict\n\n\n"
        f"def get_config():\n    return to_config_dict(override(Config(), {changes!r}))\n"
    )
    return path


def start(config: Path, workdir: Path) -> "subprocess.Popen[str]":
    """The verb, in a process of its own."""
    command = [sys.executable, "-m", "transformer.train", f"--config={config}", f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def steps_written(workdir: Path) -> int:
    """The last step in metrics.jsonl, or -1 before the first."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return int(json.loads(lines[-1])["step"]) if lines else -1
    except ValueError:
        return -1  # half a line


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written at this moment."""
    return any((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def disturb(process: Any, workdir: Path, random: random.Random) -> str:
    """Kills the process at a random moment: after some time, after some step, or while it saves."""
    how = random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    when = random.choice(["early", "step", "save"])
    before, until = steps_written(workdir), time.monotonic() + random.uniform(0, 20)
    while process.poll() is None:
        if when == "early" and time.monotonic() > until:
            break
        if when == "step" and steps_written(workdir) > before:
            break
        if when == "save" and saving(workdir):
            break
        time.sleep(0.002)
    if process.poll() is None:
        process.send_signal(how)
    said = process.communicate()[1]
    if process.returncode not in (0, os.EX_TEMPFAIL, -signal.SIGKILL, -signal.SIGTERM):
        raise SystemExit(f"exit {process.returncode}: {said}")
    assert (process.returncode == os.EX_TEMPFAIL) == (": the same command goes on from there" in said), said
    return f"{signal.Signals(how).name} ({when}) after step {steps_written(workdir)}, exit {process.returncode}"


def final(workdir: Path) -> dict[str, Any]:
    """All arrays of the newest checkpoint, by name."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from transformer.training.checkpoint import Checkpoints
    from transformer.training.sharding import path_of

    checkpoints = Checkpoints(workdir)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = ocp.metadata(checkpoints.folder / str(checkpoints.latest), checkpointable_name="state").metadata
    tree = checkpoints.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), found))
    checkpoints.close()
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_of(path): np.asarray(leaf) for path, leaf in flat}


def compare(left: Path, right: Path) -> list[str]:
    """The names of the arrays that differ."""
    import numpy as np

    one, other = final(left), final(right)
    assert len(one) > 20, "a state has parameters and moments"
    return [name for name in one.keys() | other.keys() if not np.array_equal(one.get(name), other.get(name))]


def run(folder: Path, kills: int, steps: int, checkpoint_every: int, seed: int = 0) -> list[str]:
    """Names of arrays that differ between the undisturbed run and the run that was killed so many times."""
    config, random_moments = make_config(folder, steps, checkpoint_every), random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    process = start(config, whole)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    done = 0
    while done < kills and steps_written(killed) < steps:
        print(f"{done + 1:3} {disturb(start(config, killed), killed, random_moments)}", flush=True)
        done += 1
    process = start(config, killed)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    return compare(whole, killed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--checkpoint_every", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    where = arguments.folder or Path(tempfile.mkdtemp())
    different = run(where, arguments.kills, arguments.steps, arguments.checkpoint_every)
    print("the same bit for bit" if not different else f"differ: {different}")
    sys.exit(bool(different))
