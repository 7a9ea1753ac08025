"""The metrics, times and costs of the steps between two lines of metrics.jsonl."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer.config import OptimizerConfig
from transformer.training import losses
from transformer.training.profiling import Cost, memory_in_use


class Diverged(Exception):
    """Too many updates in a row were skipped: the loss or its gradient was not finite, or the gradient a spike. `step`
    is the last of them, or 0 where it is not known."""

    def __init__(self, message: str, step: int = 0):
        super().__init__(message)
        self.step = step


def advice(optimizer: OptimizerConfig, steps: Sequence[int]) -> str:
    """What to do when a run with checkpoints of these steps has diverged."""
    keys = ["optimizer.learning_rate"] + ["optimizer.clip_norm"] * bool(optimizer.clip_norm)
    keys += ["optimizer.max_spike"] * bool(optimizer.max_spike)
    anew = ["optimizer.warmup_steps"] + ["optimizer.max_spike"] * (not optimizer.max_spike)
    where = f"go on from step {steps[-1]}" if steps else "begin again"
    if len(steps) > 1:
        where += f" (from step {steps[-2]}, if you first move checkpoints/{steps[-1]} elsewhere)"
    return (
        f"lower {' or '.join(keys)}, with --change={','.join(keys)}, to {where}; or train a new run with "
        f"{' or '.join(anew)}"
    )


class Meter:
    """Sums the metrics of the steps between two lines, and measures where their time went. `data_share` is the share of
    time that the host waited for a batch, `device_share` that it dispatched a step (a CPU computes during that) or
    waited for the metrics of the previous one; the rest is writing and saving. `cost` is the cost of a batch's step,
    `peak` the FLOPs per second of all devices together."""

    def __init__(self, optimizer: OptimizerConfig, workdir: Path, cost: Callable[[Any], Cost], peak: float):
        self.optimizer, self.workdir, self.cost, self.peak = optimizer, workdir, cost, peak
        self.pending: tuple[int, Any, Any] | None = None
        self.skipped_in_a_row = 0
        self.restart()

    def restart(self) -> None:
        self.metrics: list[dict[str, Any]] = []
        self.costs: list[Cost] = []
        self.data = self.device = 0.0
        self.began = time.monotonic()

    def waiting(self, batches: Iterator[Any]) -> Any:
        began = time.monotonic()
        batch = next(batches)
        self.data += time.monotonic() - began
        return batch

    def running(self, train_step: Callable[..., Any], *arguments: Any) -> Any:
        """The step's result, which may still be in computation."""
        began = time.monotonic()
        returned = train_step(*arguments)
        self.device += time.monotonic() - began
        return returned

    def dispatched(self, step: int, batch: Any, metrics: Any) -> None:
        self.pending = (step, batch, metrics)

    def fetch_pending(self) -> None:
        """Waits for the pending step. Diverged: it is the last of too many skipped steps in a row."""
        if self.pending is None:
            return
        (step, batch, metrics), self.pending = self.pending, None
        began = time.monotonic()
        fetched = jax.device_get(metrics)
        self.device += time.monotonic() - began
        self.metrics.append(fetched)
        self.costs.append(self.cost(batch))
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if fetched["skipped"][0] else 0
        if self.skipped_in_a_row >= self.optimizer.max_skipped:
            spike = self.optimizer.max_spike
            large = f", or the gradient above {spike:g} times the recent ones" if spike else ""
            raise Diverged(
                f"the loss or its gradient was no finite number{large} for {self.skipped_in_a_row} steps in a row, "
                f"from step {step - self.skipped_in_a_row + 1} to step {step}{_examples(batch)} "
                f"({self._dump(step, batch)})",
                step,
            )

    def _dump(self, step: int, batch: Any) -> str:
        """Writes the batch, and says where it is."""
        path = self.workdir / f"skipped_batch_{step}_process_{jax.process_index()}.npz"
        arrays: Any = {key: _local(value) for key, value in batch.items()}
        try:
            np.savez(path, **arrays)
        except OSError as error:
            return f"its batch could not be written to {str(path)!r}: {error.strerror}"
        return f"its batch is in {str(path)!r}"

    def line(self) -> dict[str, float]:
        """The means since the last line. Begins a new line."""
        summed = jax.tree.map(lambda *xs: np.sum(xs, dtype=np.float64), *self.metrics)
        skipped = int(summed.pop("skipped")[0])
        seconds = time.monotonic() - self.began
        line = (
            losses.means(summed)
            | self._costs(seconds)
            | {
                "skipped": skipped,
                "tokens_per_second": round(float(summed["loss"][1]) / seconds, 1),
                "seconds_per_step": seconds / len(self.metrics),
                "data_share": round(self.data / seconds, 4),
                "device_share": round(self.device / seconds, 4),
            }
        )
        self.restart()
        return line

    def _costs(self, seconds: float) -> dict[str, float]:
        """FLOPs per step, memory, and "model FLOPs utilization" (Chowdhery et al. 2022, "PaLM", appendix B): the share
        of the peak that is used, by the formula, or if there is none, by XLA's count for the compiled program."""
        steps = len(self.costs)
        known = [cost.model_flops for cost in self.costs if cost.model_flops is not None]
        line = {"flops": sum(cost.flops for cost in self.costs) / steps}
        if len(known) == steps:
            line["model_flops"] = sum(known) / steps
        line["mfu"] = round(line.get("model_flops", line["flops"]) * steps / (seconds * self.peak), 4)
        line["memory_bytes"] = memory_in_use() or max(cost.memory_bytes for cost in self.costs)
        return line


def _local(array: Any) -> np.ndarray:
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    rows = {shard.index[0].start or 0: np.asarray(shard.data) for shard in array.addressable_shards}
    return np.concatenate([rows[start] for start in sorted(rows)])


def _examples(batch: Any) -> str:
    """The example ids of a batch, if it has them."""
    if "example_ids" not in batch:
        return ""
    known = [int(i) for i in _local(batch["example_ids"]) if i >= 0]
    return f" with examples {', '.join(map(str, known[:8]))}{', ...' if len(known) > 8 else ''}"
