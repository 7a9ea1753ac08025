"""Orbax checkpoints of the state, written in the background; and the average of the last few."""

import itertools
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
from transformer.training.damage import cause
from transformer.training.events import replace
from transformer.training.processes import every_process
from transformer.training.sharding import path_of, shapes

# Failures are raised and reported here; Orbax also logs them, with pages of traceback.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


MOMENTS = 100  # of 50 ms: the longest time that a failed save is cleared for
NAMES = ocp.path.step.standard_name_format()
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what is being written, or removed


class Checkpoints:
    """The checkpoints of a workdir: `checkpoints/<step>`, the newest `keep` and the one with the best validation loss.
    Each is written to a temporary folder, then renamed, and renamed again before it is removed, so that a folder with
    the name of a step is always whole. The list is read from disk whenever it is needed. The `owner`, which trains in
    the folder, makes it, removes what a killed run left unfinished, and moves damaged checkpoints away; all others only
    read. UserError: the folder cannot be made."""

    def __init__(self, workdir: Path, keep: int = 1, owner: bool = False):
        self.workdir, self.keep, self.owner = workdir, keep, owner
        self.folder = (workdir / "checkpoints").absolute()
        self.thread = ThreadPoolExecutor(1, "checkpoints")  # waits for a save, then removes older checkpoints
        self.saving: Future[None] | None = None
        self.failed: str | None = None  # why the last save failed
        self.restored = 0  # the step that was restored last; of an average, the newest
        self.told: set[int] = set()  # steps whose unreadable loss was reported
        if not owner:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {str(workdir)!r}: {error.strerror}") from error
        self._remove_unfinished()

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, oldest first. UserError: the folder cannot be read."""
        try:
            return sorted(found.step for found in NAMES.find_all(self.folder))
        except OSError as error:
            raise UserError(
                f"the checkpoints of {str(self.workdir)!r} cannot be read now ({error.strerror}): nothing was changed, "
                "run the same command again when they can"
            ) from error

    @property
    def latest(self) -> int | None:
        return max(self.steps, default=None)

    @property
    def losses(self) -> dict[int, float | None]:
        """The validation losses of the checkpoints that have one; None, with a message, if it cannot be read."""
        found: dict[int, float | None] = {}
        for step in self.steps:
            try:
                found[step] = float(json.loads(self._metrics(step).read_bytes())["loss"])
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError):
                found[step] = None
                if step not in self.told:
                    self.told.add(step)
                    _say(
                        f"the validation loss of the checkpoint of step {step} in {str(self.workdir)!r} cannot be "
                        "read: the checkpoint is kept, but cannot be the best"
                    )
        return found

    @property
    def best(self) -> int:
        """The step of the checkpoint with the lowest validation loss. UserError: none was saved with one."""
        best = _best(self.losses)
        if best is None:
            raise UserError(
                f"{str(self.workdir)!r} holds no checkpoint with a loss of validation: train with "
                "logging.evaluate_every, a multiple of logging.checkpoint_every"
            )
        return best

    def save(self, step: int, state: Any, config: dict[str, Any]) -> None:
        """Copies the state to the host, and writes it while training continues. If it cannot be written (a full disk),
        that is reported, and training continues to the next save."""
        self._wait()
        if step in self.steps:
            return
        self.failed = None
        sums = {name: int(value) for name, value in jax.device_get(checksums(state)).items()}
        items = {"state": state, "config": config, "checksums": sums}
        try:
            with _context():
                response = ocp.save_checkpointables_async(self.folder / str(step), items)
        except Exception as error:
            self._say_failed(f"the checkpoint of step {step}", error)
            return
        self.saving = self.thread.submit(self._finish_save, response.result)

    def set_loss(self, step: int, loss: float) -> None:
        """Writes the validation loss, which is known only after the checkpoint was saved, and removes a checkpoint that
        was the best before. Nothing happens if there is no checkpoint of this step. If the loss cannot be written, that
        is reported."""
        self._wait()
        if jax.process_index() or step not in self.steps or self.losses.get(step) == loss:
            return
        path = self._metrics(step)
        try:
            path.parent.mkdir(exist_ok=True)
            replace(path, json.dumps({"loss": loss}).encode())
        except OSError as error:
            _say(f"the validation loss of step {step} could not be written to {str(path)!r} ({error.strerror})")
        self._prune()

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

    def restore_params(self, like_params: Any, best: bool = False) -> Any:
        """As `restore`, but the parameters only; the optimizer state is not read. `best`: those of the checkpoint with
        the lowest validation loss; a running training may replace it by a better one meanwhile."""
        like, step = {"params": like_params}, self.best if best else None
        while True:
            try:
                return next(self._whole(like, step, partial=True))["params"]
            except UserError:
                if not best or step in self.steps:
                    raise
                step = self.best

    def average_params(self, like_params: Any, last: int) -> Any:
        """The mean of the parameters of the newest `last` intact checkpoints (paper, section 6.1). One checkpoint is in
        memory at a time, and its sum in float64 with the others, on the host: each process reads and sums the shards of
        its own devices. UserError: there are fewer."""
        (leaves, tree), count = jax.tree.flatten(like_params), 0
        sums: list[dict[str, np.ndarray]] = [{} for _ in leaves]
        enough = last if len(self.steps) >= last else 0
        for found in itertools.islice(self._whole({"params": like_params}, partial=True), enough):
            _add_shards(sums, jax.tree.leaves(found["params"]))
            count += 1
            del found  # before the next one is read
        if count < last:
            raise UserError(
                f"{str(self.workdir)!r} holds {count or len(self.steps)} checkpoints, not {last}: average fewer, or "
                f"train with logging.keep={last}"
            )

        def mean(like: Any, parts: dict[str, np.ndarray]) -> jax.Array:
            share = lambda index: (parts[str(index)] / last).astype(like.dtype)  # noqa: E731
            return jax.make_array_from_callback(like.shape, like.sharding, share)

        return jax.tree.unflatten(tree, map(mean, leaves, sums))

    def _whole(self, like: Any, step: int | None = None, partial: bool = False) -> Iterator[Any]:
        """The contents of the intact checkpoints, newest first, or of `step` alone. Damaged ones are reported and
        skipped. The list is read again after each failure, because a running training may have replaced checkpoints by
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
            if number in self.steps:
                reason = f"the checkpoint of step {number} in {where} is damaged ({damage})"
                if len(left) > 1:
                    _say(f"{reason}: it is left out for the one before")
        if self.restored:
            return
        if reason is None:
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise UserError(f"{where} holds {which}: train there first")
        if step is not None:
            raise UserError(f"{reason}: use the newest checkpoint, or the mean of several")
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
        reason, damaged = cause(error) if error else ("another process cannot read its share", True)
        if not every_process(damaged):
            raise UserError(
                f"the checkpoint of step {step} in {str(self.workdir)!r} cannot be read now ({reason}): nothing was "
                "changed, run the same command again when it can"
            )
        return None, reason

    def set_aside_after(self, step: int) -> None:
        """Moves the checkpoints after `step`, which are damaged, to `damaged_checkpoints/`."""
        if not self.owner:
            return
        late = [number for number in self.steps if number > step]
        if late and jax.process_index() == 0:
            aside = self.workdir / "damaged_checkpoints"
            aside.mkdir(exist_ok=True)
            for number in late:
                kept = sum(path.name.split("-")[0] == str(number) for path in aside.iterdir())
                (self.folder / str(number)).rename(aside / (f"{number}-{kept}" if kept else str(number)))
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")

    def close(self) -> None:
        self._wait()
        self.thread.shutdown()

    def _metrics(self, step: int) -> Path:
        return self.folder / str(step) / "metrics" / "metrics"

    def _finish_save(self, wait: Callable[[], object]) -> None:
        wait()
        self._remove_unfinished()  # what late writers of a failed save made again
        self._prune()

    def _prune(self) -> None:
        """Removes all checkpoints but the newest `keep`, the best, and those whose loss cannot be read."""
        if jax.process_index():
            return
        try:
            steps, losses = self.steps, self.losses
            kept = {*steps[-self.keep :], _best(losses), *(step for step, loss in losses.items() if loss is None)}
            for step in steps:
                if step not in kept:
                    removed = self.folder / f"{step}{UNFINISHED}"
                    (self.folder / str(step)).rename(removed)
                    shutil.rmtree(removed)
        except (OSError, UserError) as error:
            _say(f"older checkpoints in {str(self.workdir)!r} could not be removed ({error}): training goes on")

    def _wait(self) -> None:
        """Waits for the pending save."""
        saving, self.saving = self.saving, None
        if saving is None:
            return
        try:
            saving.result()
        except Exception as error:
            self._say_failed("the last checkpoint", error)

    def _say_failed(self, which: str, error: Exception) -> None:
        if self.owner:  # unfinished files take up disk space
            self._clear_unfinished()
        self.failed = f"{which} could not be written to {str(self.workdir)!r} ({cause(error)[0]})"
        _say(f"{self.failed}: training goes on, and tries again at the next")

    def _clear_unfinished(self) -> None:
        """Removes unfinished files until no more appear: Orbax's other writers notice the failure a moment later, and
        make their folders again."""
        gone = 0
        for _ in range(MOMENTS):
            gone = 0 if self._remove_unfinished() else gone + 1
            if gone == 4:
                return
            time.sleep(0.05)

    def _remove_unfinished(self) -> bool:
        """Whether there was something to remove."""
        left = [] if jax.process_index() else list(self.folder.glob(f"*{UNFINISHED}*"))
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        return bool(left)

    def _check_model(self, step: int, like: Any, partial: bool) -> None:
        """UserError: the checkpoint, or the requested part of it, has arrays of other names, shapes or types."""
        found = ocp.metadata(self.folder / str(step), checkpointable_name="state").metadata
        if found is None:  # unreadable; loading the arrays will say why
            return
        if partial:
            found = {key: found.get(key) for key in like}
        theirs: dict[str, Any] = shapes(found)
        ours: dict[str, Any] = shapes(like)
        if theirs == ours:
            theirs, ours = _types(found), _types(like)
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


def _add_shards(sums: list[dict[str, np.ndarray]], arrays: list[jax.Array]) -> None:
    """Adds what this process's devices hold of each array to its sums, which are keyed by the place of the shard; of
    shards that lie at one place, one."""
    for parts, array in zip(sums, arrays, strict=True):
        for place, shard in {str(shard.index): shard for shard in array.addressable_shards}.items():
            data = np.asarray(shard.data)
            if place in parts:
                parts[place] += data.astype(np.float64)
            else:
                parts[place] = data.astype(np.float64)


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


def _types(tree: Any) -> dict[str, str]:
    """Path -> type of each array."""
    return {path_of(path): jnp.dtype(leaf.dtype).name for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _best(losses: Mapping[int, float | None]) -> int | None:
    """The step of the lowest loss, which is never one that is not finite."""
    known = {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return min(known, key=lambda step: known[step], default=None)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
