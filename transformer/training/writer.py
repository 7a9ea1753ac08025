"""Output of a run: metrics.jsonl, TensorBoard's events, and a progress bar on a terminal or plain lines elsewhere."""

import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from transformer.training.events import Events, append, tag_of


class Writer:
    """Appends one JSON object per line to `metrics.jsonl`, and the same numbers to TensorBoard's events. Lines after
    `step` (of an interrupted run) are dropped. Of several processes only the `first` writes."""

    def __init__(self, workdir: Path, step: int, steps: int, quiet: bool = False, first: bool = True):
        self.path, self.first = workdir / "metrics.jsonl", first
        quiet = quiet or not first

        def keep(at: int | float, names: Collection[str]) -> bool:
            again = at == steps and ("validation_loss" in names or tag_of("validation_loss") in names)
            return at <= step and not again  # a finished run is only evaluated again

        if first and self.path.exists():
            lines = self.path.read_text().splitlines()
            self.path.write_text("".join(line + "\n" for line in lines if keep(_step(line), line)))
        if first:
            self.events = Events(workdir, keep)
        self.steps, self.quiet, self.began = steps, quiet, time.monotonic()
        self.bar = None
        if sys.stderr.isatty() and not quiet:
            self.bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)

    def write(self, step: int, **metrics: Any) -> None:
        """Writes a line of metrics. If that fails (a full disk), it is reported, and training continues."""
        if not self.first:
            return
        line = {"step": step} | {key: _rounded(value) for key, value in metrics.items()}
        try:
            append(self.path, (json.dumps(line) + "\n").encode())
            self.events.write(step, {tag_of(key): float(value) for key, value in metrics.items()})
        except OSError as error:
            self.show(step, f"its metrics could not be written to {str(self.path.parent)!r} ({error.strerror})")

    def show(self, step: int, message: str) -> None:
        """Prints a line beside the progress bar."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(message, file=sys.stderr)
        else:
            elapsed = time.monotonic() - self.began
            print(f"[{elapsed:6.1f} s] step {step}/{self.steps}  {message}", file=sys.stderr, flush=True)

    def progress(self, step: int, loss: float | None = None, tokens_per_second: float | None = None) -> None:
        if self.bar is None:
            if loss is not None:
                self.show(step, f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s")
            return
        self.bar.update(step - self.bar.n)
        if loss is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}, {tokens_per_second:,.0f} tokens/s")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a truncated line


def _rounded(value: Any) -> Any:
    return float(f"{value:.8g}") if isinstance(value, float) else value
