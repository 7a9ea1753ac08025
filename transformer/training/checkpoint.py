"""Orbax checkpoints of the state, written in the background; and the average of the last few."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from transformer.config import UserError


class Checkpoints:
    """The checkpoints of a workdir: `checkpoints/<step>`, the newest `keep` of them."""

    def __init__(self, workdir: Path, keep: int = 1):
        self.workdir = workdir
        self.manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
        )

    @property
    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, step: int, state: Any, config: dict[str, Any]) -> None:
        """Copies the state to the host, and writes it while training goes on."""
        if step in self.manager.all_steps():
            return
        self.manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config))
        )

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The newest state (or that of `step`), with the shapes, types and shardings of `like`."""
        step = self.latest if step is None else step
        if step is None:
            raise UserError(f"{str(self.workdir)!r} holds no checkpoint: train there first")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        return self.manager.restore(step, args=args)["state"]

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
        self.manager.wait_until_finished()
        self.manager.close()
