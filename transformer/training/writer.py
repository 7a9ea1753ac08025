"""Output of a run: metrics.jsonl, TensorBoard's events, and a progress bar on a terminal or plain lines elsewhere."""

import json
import math
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from transformer.errors import UserError
from transformer.training.events import Events, append, replace, tag_of


class Writer:
    """Appends one JSON object per line to `metrics.jsonl`, and the same numbers to TensorBoard's events; what is no
    finite number is null there and NaN here. Lines after `step` (of an interrupted run) are dropped, and with `again`
    also the validation of `step`, which is repeated. Of several processes only the `first` writes. UserError: the files
    cannot be written."""

    def __init__(
        self, workdir: Path, step: int, steps: int, quiet: bool = False, first: bool = True, again: bool = False
    ):
        self.path, self.first = workdir / "metrics.jsonl", first
        quiet = quiet or not first

        def keep(at: int | float, names: Collection[str]) -> bool:
            validation = "validation_loss" in names or tag_of("validation_loss") in names
            return at <= step and not (again and at == step and validation)

        try:
            if first and self.path.exists():
                lines = [(line, _read(line)) for line in self.path.read_bytes().splitlines()]
                replace(self.path, b"".join(line + b"\n" for line, read in lines if keep(read["step"], read)))
            if first:
                self.events = Events(workdir, keep)
        except OSError as error:
            raise UserError(f"cannot write metrics to {str(workdir)!r}: {error.strerror}") from error
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
            append(self.path, (json.dumps(line, allow_nan=False) + "\n").encode())
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

    def progress(self, step: int, line: Mapping[str, float] | None = None) -> None:
        """Shows that a step is done; `line`: the metrics of the steps since the last line, if they are known."""
        said = None
        if line is not None:
            skipped = f", skipped steps: {line['skipped']:.0f}" if line["skipped"] else ""
            loss = f"loss {line['loss']:.4f}" if math.isfinite(line["loss"]) else "no loss"
            said = f"{loss}, {line['tokens_per_second']:,.0f} tokens/s{skipped}"
        if self.bar is None:
            if said is not None:
                self.show(step, said)
            return
        self.bar.update(step - self.bar.n)
        if said is not None:
            self.bar.set_postfix_str(said)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _read(line: bytes) -> dict[str, Any]:
    try:
        read = json.loads(line)
        return read | {"step": float(read["step"])}
    except (ValueError, KeyError, TypeError):
        return {"step": math.inf}  # a truncated line


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.8g}") if math.isfinite(value) else None
