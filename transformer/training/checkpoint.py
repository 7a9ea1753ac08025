"""Orbax checkpoints of the state, written in the background; and the average of the last few."""

import logging
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Array
from orbax.checkpoint import checkpoint_managers as policies

from transformer.errors import UserError
from transformer.training.processes import every_process
from transformer.training.sharding import path_of, shapes

# What fails is raised, and said in a sentence here; Orbax logs it as well, with pages of traceback.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


MOMENTS = 100  # of 50 ms: how long a failed save is cleared away at most


class Checkpoints:
    """The checkpoints of a workdir: `checkpoints/<step>`, the newest `keep` of them and that of the best loss.

    A checkpoint is written beside its place and moved there whole. The `owner` of the folder, which trains there,
    clears away what was half-written when it was killed, and sets damaged checkpoints aside; all others only read.
    UserError: the folder cannot be made.
    """

    def __init__(self, workdir: Path, keep: int = 1, owner: bool = False):
        self.workdir, self.owner = workdir, owner
        self.failed: str | None = None  # why the last save came to nothing
        best = policies.BestN(get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=_loss,  # without it Orbax writes no metrics, and the best is forgotten with the process
            enable_async_checkpointing=True,
            cleanup_tmp_directories=owner,
        )
        self.state_handler, self.checksums_handler = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
        try:
            self.manager = ocp.CheckpointManager(
                (workdir / "checkpoints").absolute(),
                options=options,
                item_handlers={
                    "state": self.state_handler,
                    "config": ocp.JsonCheckpointHandler(),
                    "checksums": self.checksums_handler,
                },
            )
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {str(workdir)!r}: {error.strerror}") from error

    @property
    def latest(self) -> int | None:
        return self.manager.latest_step()

    @property
    def best(self) -> int:
        """The step of the checkpoint with the lowest loss of validation. UserError: none was saved with one."""
        losses = {step: (self.manager.metrics(step) or {}).get("loss") for step in self.manager.all_steps()}
        known = {step: loss for step, loss in losses.items() if loss is not None}
        if not known:
            raise UserError(
                f"{str(self.workdir)!r} holds no checkpoint with a loss of validation: train with "
                "logging.evaluate_every, a multiple of logging.checkpoint_every"
            )
        return min(known, key=lambda step: known[step])

    def save(self, step: int, state: Any, config: dict[str, Any], loss: float | None = None) -> None:
        """Copies the state to the host, and writes it while training goes on; `loss` is that of validation, if known.

        Where it cannot be written (a full disk), that is said, and training goes on to the next save.
        """
        self._settle()
        if step in self.manager.all_steps():
            return
        self.failed = None
        sums = {name: int(value) for name, value in jax.device_get(checksums(state)).items()}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config), checksums=ocp.args.JsonSave(sums)
        )
        try:
            self.manager.save(step, args=args, metrics=None if loss is None else {"loss": loss})
        except Exception as error:
            self._say_failed(step, error)

    def finish(self) -> None:
        """Waits for the last save. UserError: it came to nothing."""
        self._settle()
        if self.failed is not None:
            raise UserError(f"{self.failed}: make room, and run the same command again to go on from {self.latest}")

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The newest state (or that of `step`), with the shapes, types and shardings of `like`.

        A damaged checkpoint is named, and the one before it is taken. UserError: there is none, none is whole, or it
        is of another model.
        """
        steps = sorted(self.manager.all_steps(), reverse=True) if step is None else [step]
        if not steps:
            raise UserError(f"{str(self.workdir)!r} holds no checkpoint: train there first")
        reasons = []
        for number in steps:
            state, reason = self._read(number, like)
            if reason is None:
                return state
            reasons.append(f"the checkpoint of step {number} in {str(self.workdir)!r} is damaged ({reason})")
            if number != steps[-1]:
                print(f"{reasons[-1]}: it is left out for the one before", file=sys.stderr, flush=True)
        raise UserError(f"{reasons[-1]}, and there is no whole one before it: delete the folder to begin anew")

    def _read(self, step: int, like: Any) -> tuple[Any, str | None]:
        """The state of a step, or else why it cannot be had: a process cannot read its files, or its numbers are not
        those that were saved. All processes give the same answer, though each reads its own share of the arrays; so
        they read without Orbax's manager, in which those that could would wait for the one that could not."""
        folder, state, sums, reason = self.manager.directory / str(step), None, {}, None
        try:
            self._check_model(step, like)
            state = self.state_handler.restore(folder / "state", args=ocp.args.StandardRestore(like))
            if (folder / "checksums").exists():
                sums = self.checksums_handler.restore(folder / "checksums")
        except UserError:
            raise
        except Exception as error:  # whatever Orbax and its storage raise for what they cannot read
            reason = _first(error)
        if not every_process(reason is None):
            return None, reason or "another process cannot read its share"
        found = jax.device_get(checksums(state))
        wrong = [name for name, value in sums.items() if value != found.get(name)]
        return state, f"{wrong[0]} has other numbers than were saved" if wrong else None

    def set_aside_after(self, step: int) -> None:
        """Moves the checkpoints after `step`, which turned out damaged, to `damaged_checkpoints/`."""
        late = [number for number in self.manager.all_steps() if number > step]
        if not late or not self.owner:
            return
        if jax.process_index() == 0:
            aside = self.workdir / "damaged_checkpoints"
            aside.mkdir(exist_ok=True)
            for number in late:
                kept = sum(path.name.split("-")[0] == str(number) for path in aside.iterdir())
                (self.manager.directory / str(number)).rename(aside / (f"{number}-{kept}" if kept else str(number)))
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self.manager.reload()

    def average(self, like: Any, last: int) -> Any:
        """The mean of the newest `last` states (paper, section 6.1), summed in float64; counts are the newest's."""
        steps = sorted(self.manager.all_steps())[-last:]
        if len(steps) < last:
            raise UserError(
                f"{str(self.workdir)!r} holds {len(steps)} checkpoints, not {last}: average fewer, or train with "
                f"logging.keep={last}"
            )
        states = [self.restore(like, step) for step in steps]

        def mean(*xs: Any) -> Any:
            if not np.issubdtype(xs[-1].dtype, np.floating):
                return xs[-1]
            return np.mean([np.asarray(x, np.float64) for x in xs], axis=0).astype(xs[-1].dtype)

        return jax.tree.map(mean, *states)

    def close(self) -> None:
        """Waits for the last save, and ends the threads."""
        self._settle()
        self.manager.close()

    def _settle(self) -> None:
        try:
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
        except Exception as error:
            self._say_failed(None, error)

    def _say_failed(self, step: int | None, error: Exception) -> None:
        which = "the last checkpoint" if step is None else f"the checkpoint of step {step}"
        if self.owner:  # what was half-written takes up the room that is missing
            self._clear_unfinished()
        self.failed = f"{which} could not be written to {str(self.workdir)!r} ({_first(error)})"
        print(f"{self.failed}: training goes on, and tries again at the next", file=sys.stderr, flush=True)

    def _clear_unfinished(self) -> None:
        """Removes what was half-written, until nothing more comes: those who write the other arrays hear of the failure
        a moment later, and make its folders anew."""
        gone = 0
        for _ in range(MOMENTS):
            left = list((self.workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            gone = 0 if left else gone + 1
            if gone == 4:
                return
            time.sleep(0.05)

    def _check_model(self, step: int, like: Any) -> None:
        """UserError: the checkpoint holds arrays of other names or shapes."""
        found = self.manager.item_metadata(step)["state"]
        if found is None:
            raise ValueError("its list of arrays cannot be read")
        theirs, ours = (shapes(tree) for tree in (found, like))
        for name in [*ours, *theirs]:
            if ours.get(name) != theirs.get(name):
                raise UserError(
                    f"the checkpoint of step {step} in {str(self.workdir)!r} is of another model or optimizer ({name} "
                    f"is {theirs.get(name, 'not there')} in it and {ours.get(name, 'not there')} in the config): "
                    "name another folder, or the config that it was trained with"
                )


@jax.jit
def checksums(tree: Any) -> dict[str, Array]:
    """For each array the sum of its words times the odd numbers, in 32 bits: no single wrong bit escapes it, and it is
    the same under every sharding. Storage does not notice a wrong bit in the middle of an array by itself."""

    def one(x: Array) -> Array:
        words = lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
        index = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return (words * (2 * index + 1)).sum(dtype=jnp.uint32)

    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_of(path): one(leaf) for path, leaf in flat}


def _loss(metrics: dict[str, float]) -> float:
    return metrics["loss"]


def _first(error: Exception) -> str:
    """What the system said, or else the first line, cut to a readable length; storage libraries tell pages."""
    if said := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(said[1]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]
