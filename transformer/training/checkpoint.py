"""Orbax checkpoints of the state, written in the background; and the average of the last few."""

import contextlib
import errno
import itertools
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Array
from orbax.checkpoint import v1 as ocp

from transformer.errors import UserError
from transformer.training.processes import every_process
from transformer.training.sharding import path_of, shapes

# Failures are raised and reported here; Orbax also logs them, with pages of traceback.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


MOMENTS = 100  # of 50 ms: the longest time that a failed save is cleared for


class Checkpoints:
    """The checkpoints of a workdir: `checkpoints/<step>`, the newest `keep` and the one with the best loss. Each is
    written to a temporary folder, then renamed. The `owner`, which trains in the folder, removes unfinished checkpoints
    of a killed run, and moves damaged ones away; all others only read. UserError: the folder cannot be made."""

    def __init__(self, workdir: Path, keep: int = 1, owner: bool = False):
        self.workdir, self.owner = workdir, owner
        self.folder = (workdir / "checkpoints").absolute()
        self.saving: ocp.AsyncResponse[bool] | None = None
        self.failed: str | None = None  # why the last save failed
        self.restored = 0  # the step that was restored last; of an average, the newest
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        try:
            self.orbax = ocp.training.Checkpointer(
                self.folder,
                context=_context(),
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                cleanup_tmp_directories=owner,
            )
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {str(workdir)!r}: {error.strerror}") from error

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, oldest first."""
        return [checkpoint.step for checkpoint in self.orbax.checkpoints]

    @property
    def latest(self) -> int | None:
        return max(self.steps, default=None)

    @property
    def best(self) -> int:
        """The step of the checkpoint with the lowest validation loss. UserError: none was saved with one."""
        known = {
            checkpoint.step: _loss(checkpoint.metrics) for checkpoint in self.orbax.checkpoints if checkpoint.metrics
        }
        if not known:
            raise UserError(
                f"{str(self.workdir)!r} holds no checkpoint with a loss of validation: train with "
                "logging.evaluate_every, a multiple of logging.checkpoint_every"
            )
        return min(known, key=lambda step: known[step])

    def save(self, step: int, state: Any, config: dict[str, Any], loss: float | None = None) -> None:
        """Copies the state to the host, and writes it while training continues; `loss` is the validation loss, if
        known. If it cannot be written (a full disk), that is reported, and training continues to the next save."""
        self._wait()
        if step in self.steps:
            return
        self.failed = None
        sums = {name: int(value) for name, value in jax.device_get(checksums(state)).items()}
        items = {"state": state, "config": config, "checksums": sums}
        metrics = None if loss is None else {"loss": loss}
        try:
            self.saving = self.orbax.save_checkpointables_async(step, items, metrics=metrics, force=True)
        except Exception as error:
            self._say_failed(f"the checkpoint of step {step}", error)

    def finish(self) -> None:
        """Waits for the last save. UserError: it failed."""
        self._wait()
        if self.failed is not None:
            raise UserError(f"{self.failed}: make room, and run the same command again to go on from {self.latest}")

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The newest state (or that of `step`), with the shapes, types and shardings of `like`. A damaged checkpoint is
        reported, and the previous one is used. UserError: there is none, none is intact, one cannot be read at the
        moment, or it is of another model."""
        return next(self._whole(like, step))

    def restore_params(self, like_params: Any, step: int | None = None) -> Any:
        """As `restore`, but the parameters only; the optimizer state is not read."""
        return next(self._whole({"params": like_params}, step, partial=True))["params"]

    def average_params(self, like_params: Any, last: int) -> Any:
        """The mean of the parameters of the newest `last` intact checkpoints (paper, section 6.1), summed in float64 on
        the host with one checkpoint in memory at a time. UserError: there are fewer."""
        total, count = jax.tree.map(lambda x: np.zeros(x.shape, np.float64), like_params), 0
        enough = last if len(self.steps) >= last else 0
        for found in itertools.islice(self._whole({"params": like_params}, partial=True), enough):
            jax.tree.map(lambda sum, x: np.add(sum, np.asarray(x, np.float64), out=sum), total, found["params"])
            count += 1
            del found  # before the next one is read
        if count < last:
            raise UserError(
                f"{str(self.workdir)!r} holds {count or len(self.steps)} checkpoints, not {last}: average fewer, or "
                f"train with logging.keep={last}"
            )
        return jax.tree.map(lambda sum, x: jax.device_put((sum / last).astype(x.dtype), x.sharding), total, like_params)

    def _whole(self, like: Any, step: int | None = None, partial: bool = False) -> Iterator[Any]:
        """The contents of the intact checkpoints, newest first, or of `step` alone. Damaged ones are reported and
        skipped. The list is reloaded after each failure, because a running training may have replaced checkpoints by
        newer ones. UserError: there is none."""
        tried: set[int] = set()
        self.restored = 0
        where, reason = repr(str(self.workdir)), None
        while left := set(self.steps if step is None else [step]) - tried:
            number = max(left)
            tried.add(number)
            tree, damage = self._read(number, like, partial)
            if damage is None:
                self.restored = max(number, self.restored)
                yield tree
                del tree  # before the next one is read
                continue
            self.orbax.reload()
            if number in self.steps:
                reason = f"the checkpoint of step {number} in {where} is damaged ({damage})"
                if len(left) > 1:
                    print(f"{reason}: it is left out for the one before", file=sys.stderr, flush=True)
        if self.restored:
            return
        if reason is None:
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise UserError(f"{where} holds {which}: train there first")
        raise UserError(f"{reason}, and there is no whole one before it: delete the folder to begin anew")

    def _read(self, step: int, like: Any, partial: bool) -> tuple[Any, str | None]:
        """The arrays of a step, or else the damage: a process cannot read its files, or checksums do not match. All
        processes return the same, though each reads its own share of the arrays. UserError: the checkpoint is of
        another model, or the system could not read it, which does not mean damage."""
        folder, tree, sums, error = self.folder / str(step), None, {}, None
        try:
            with _context(alone=True):
                self._check_model(step, like, partial)
                tree = ocp.load(folder, like, checkpointable_name="state")
                if (folder / "checksums").exists():
                    sums = ocp.load_checkpointables(folder, {"checksums": None})["checksums"]
        except UserError:
            raise
        except Exception as raised:  # Orbax and its storage raise many types
            error = raised
        if every_process(error is None):
            found = jax.device_get(checksums(tree))
            wrong = [name for name, value in found.items() if sums.get(name, value) != value]
            return tree, f"{wrong[0]} has other numbers than were saved" if wrong else None
        reason, damaged = _cause(error) if error else ("another process cannot read its share", True)
        if not every_process(damaged):
            raise UserError(
                f"the checkpoint of step {step} in {str(self.workdir)!r} cannot be read now ({reason}): nothing was "
                "changed, run the same command again when it can"
            )
        return None, reason

    def set_aside_after(self, step: int) -> None:
        """Moves the checkpoints after `step`, which are damaged, to `damaged_checkpoints/`."""
        late = [number for number in self.steps if number > step]
        if not late or not self.owner:
            return
        if jax.process_index() == 0:
            aside = self.workdir / "damaged_checkpoints"
            aside.mkdir(exist_ok=True)
            for number in late:
                kept = sum(path.name.split("-")[0] == str(number) for path in aside.iterdir())
                (self.folder / str(number)).rename(aside / (f"{number}-{kept}" if kept else str(number)))
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self.orbax.reload()

    def close(self) -> None:
        self._wait()
        self.orbax.close()

    def _wait(self) -> None:
        """Waits for the pending save. Orbax raises an error once in each thread that waits."""
        saving, self.saving = self.saving, None
        if saving is None:
            return
        try:
            saving.result()
        except Exception as error:
            with contextlib.suppress(Exception):
                self.orbax.wait()
            self._say_failed("the last checkpoint", error)

    def _say_failed(self, which: str, error: Exception) -> None:
        if self.owner:  # unfinished files take up disk space
            self._clear_unfinished()
        self.orbax.reload()  # Orbax has already dropped from its list what it would have removed after the save
        self.failed = f"{which} could not be written to {str(self.workdir)!r} ({_cause(error)[0]})"
        print(f"{self.failed}: training goes on, and tries again at the next", file=sys.stderr, flush=True)

    def _clear_unfinished(self) -> None:
        """Removes unfinished files until no more appear: Orbax's other writers notice the failure a moment later, and
        make their folders again."""
        gone = 0
        for _ in range(MOMENTS):
            left = list(self.folder.glob("*orbax-checkpoint-tmp*"))
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            gone = 0 if left else gone + 1
            if gone == 4:
                return
            time.sleep(0.05)

    def _check_model(self, step: int, like: Any, partial: bool) -> None:
        """UserError: the checkpoint, or the requested part of it, has arrays of other names or shapes."""
        found = ocp.metadata(self.folder / str(step), checkpointable_name="state").metadata
        if found is None:  # unreadable; loading the arrays will say why
            return
        theirs, ours = shapes({key: found.get(key) for key in like} if partial else found), shapes(like)
        for name in [*ours, *theirs]:
            if ours.get(name) != theirs.get(name):
                raise UserError(
                    f"the checkpoint of step {step} in {str(self.workdir)!r} is of another model or optimizer ({name} "
                    f"is {theirs.get(name, 'not there')} in it and {ours.get(name, 'not there')} in the config): "
                    "name another folder, or the config that it was trained with"
                )


def _context(alone: bool = False) -> ocp.Context:
    """Orbax's options. `alone`: this process does not wait for the others, which may fail to read their share."""
    context = ocp.Context()
    registry = ocp.handlers.local_registry()
    for name in ("config", "checksums"):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context.checkpointables.registry = registry
    context.pytree.loading.partial_load = True  # `_check_model` has checked what may be missing
    if alone:
        context.multiprocessing.primary_host = ocp.multihost.process_index()
        context.multiprocessing.active_processes = {ocp.multihost.process_index()}
    return context


@jax.jit
def checksums(tree: Any) -> dict[str, Array]:
    """For each array the sum of its words times the odd numbers, in 32 bits. It detects every single wrong bit, which
    storage does not notice in the middle of an array, and is the same under every sharding."""

    def one(x: Array) -> Array:
        words = lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
        index = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return (words * (2 * index + 1)).sum(dtype=jnp.uint32)

    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_of(path): one(leaf) for path, leaf in flat}


def _loss(metrics: Any) -> float:
    """The validation loss; NaN is never the best."""
    loss = metrics["loss"]
    return math.inf if math.isnan(loss) else loss


def _cause(error: BaseException) -> tuple[str, bool]:
    """The cause in one readable line; and whether the files are damaged, or else the system has no memory, file handles
    or disk to read them."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's form of system errors
    number = int(said[1]) if said else getattr(error, "errno", None)
    if number is not None:
        return os.strerror(number), number in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    if isinstance(error, FileNotFoundError):
        return line, True
    return line, not isinstance(error, OSError | MemoryError | RuntimeError) and "RESOURCE_EXHAUSTED" not in line
