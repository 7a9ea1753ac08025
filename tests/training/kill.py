"""python tests/training/kill.py --kills=30 [--seed=0] [--folder=...]

Trains one tiny run undisturbed, and the same run ended so many times by SIGKILL and as often by SIGTERM, at random
moments; a third of each comes while a checkpoint is being saved. Then compares the two: the final states bit for bit,
the lines of metrics.jsonl but for the clock's figures, the checkpoints that are kept, and which is the best. Prints
what happened, and exits with 1 where they differ.
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
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLOCK = ("tokens_per_second", "seconds_per_step", "data_share", "device_share", "mfu")


def make_config(folder: Path, steps: int, checkpoint_every: int, log_every: int = 5) -> Path:
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
        "logging.log_every": log_every,
        "logging.evaluate_every": 2 * checkpoint_every,
        "logging.checkpoint_every": checkpoint_every,
    }
    path = folder / "config.py"
    path.write_text(
        "from transformer.config import Config, override, to_config_dict\n\n\n"
        f"def get_config():\n    return to_config_dict(override(Config(), {changes!r}))\n"
    )
    return path


def start(config: Path, workdir: Path, said: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    """The verb, in a process of its own, which finds what an earlier one compiled."""
    command = [sys.executable, "-m", "transformer.train", f"--config={config}", f"--workdir={workdir}"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(config.parent / "compiled")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment = cache | os.environ
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=said, stdout=subprocess.DEVNULL, text=True)


def steps_written(workdir: Path) -> int:
    """The last step in metrics.jsonl, or -1 before the first."""
    try:
        with (workdir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            return int(json.loads(file.read().splitlines()[-1])["step"])
    except (OSError, ValueError, IndexError, TypeError):
        return -1  # not there yet, or half a line


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written at this moment: a newer one than all others, which are perhaps removed."""
    names = [path.name.partition(".") for path in (workdir / "checkpoints").glob("[0-9]*")]
    whole = max((int(step) for step, dot, _ in names if not dot), default=-1)
    return any(int(step) > whole for step, dot, _ in names if dot)


def disturb(process: Any, workdir: Path, how: signal.Signals, when: str, random: random.Random) -> bool:
    """Ends the process at a random moment: after some time, after some steps, or while it saves. Whether a checkpoint
    was being saved: one that was killed then leaves it unfinished."""
    until = time.monotonic() + random.uniform(0, 20)
    further = max(0, steps_written(workdir)) + random.randint(1, 60)
    hit = False
    while process.poll() is None:
        if when == "early" and time.monotonic() > until:
            break
        if when == "step" and steps_written(workdir) >= further:
            break
        if when == "save" and steps_written(workdir) >= further - 30 and saving(workdir):
            hit = True
            break
        time.sleep(0.001)
    alive = process.poll() is None
    if alive:
        process.send_signal(how)
    said = process.communicate()[1]
    if process.returncode not in (0, os.EX_TEMPFAIL, -how):
        raise SystemExit(f"exit {process.returncode}: {said}")
    return alive and (saving(workdir) if how == signal.SIGKILL else hit)


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


def lines(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    read = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in read]


def compare(left: Path, right: Path) -> list[str]:
    """What differs: names of arrays, numbers of lines of metrics.jsonl, "checkpoints"."""
    import numpy as np

    from transformer.training.checkpoint import Checkpoints

    one, other = final(left), final(right)
    assert len(one) > 20, "a state has parameters and moments"
    names = [name for name in one.keys() | other.keys() if not np.array_equal(one.get(name), other.get(name))]
    written = [lines(each) for each in (left, right)]
    names += [f"line {number}" for number, (a, b) in enumerate(zip(*written, strict=False), start=1) if a != b]
    names += [f"{len(written[0])} and {len(written[1])} lines"] * (len(written[0]) != len(written[1]))
    kept = [(each.steps, each.losses, each.best) for each in map(Checkpoints, (left, right))]
    return names + [f"checkpoints: {kept}"] * (kept[0] != kept[1])


def run(folder: Path, kills: int, steps: int, checkpoint_every: int, seed: int = 0) -> list[str]:
    """What differs between the undisturbed run and the one that was ended so many times by each signal. A SIGKILL
    that was meant for a save and came too late counts as another."""
    config, drawn = make_config(folder, steps, checkpoint_every, log_every=1), random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    with (folder / "whole.log").open("w") as log:
        undisturbed = start(config, whole, log.fileno())
    left = Counter({(how, saves): kills // 3 if saves else kills - kills // 3
                    for how in (signal.SIGKILL, signal.SIGTERM) for saves in (True, False)})  # fmt: skip
    done, began = 0, time.monotonic()
    while left.total():
        how, saves = drawn.choice(sorted(left.elements()))
        when = "save" if saves else drawn.choice(["early", "step", "step"])
        hit = disturb(start(config, killed), killed, how, when, drawn)
        left[how, hit] = max(0, left[how, hit] - 1)
        done += 1
        word, at = "while saving" if hit else when, steps_written(killed)
        print(f"{done:3} {how.name} ({word}) after step {at}; {time.monotonic() - began:.0f} s", flush=True)
        assert at < steps, f"the run ended before {left.total()} of its kills: give more steps"
    process = start(config, killed)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert undisturbed.wait() == 0, (folder / "whole.log").read_text()
    return compare(whole, killed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--checkpoint_every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    where = arguments.folder or Path(tempfile.mkdtemp())
    different = run(where, arguments.kills, arguments.steps, arguments.checkpoint_every, arguments.seed)
    print("the same bit for bit" if not different else f"differ: {different[:20]}")
    sys.exit(bool(different))
