"""How far a sweep is, told while it runs."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from experiments.lab.results import read_lines
from experiments.lab.single import Cost, Run


class Progress:
    """Tells of all runs at once: a bar over steps on a terminal, a line for each finished run elsewhere."""

    def __init__(self, runs: Sequence[Run], missing: Sequence[Run]):
        self.runs, self.done, self.failures = len(runs), len(runs) - len(missing), 0
        steps = sum(run.config.steps for run in runs)
        self.began, self.first = time.monotonic(), self.done
        self.complete = steps - sum(run.config.steps for run in missing)
        self.bar: Any = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=steps, initial=self.complete, unit="step", dynamic_ncols=True, smoothing=0.05)

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def finished(self, task: Any, result: dict[str, Any]) -> None:
        if isinstance(task, Cost):
            return
        self.done += 1
        shown = [f"{key} {value:.4g}" for key, value in result["metrics"].items() if value is not None][:3]
        how = f"shared from {found}" if (found := result.get("shared_from")) else f"{result['train_seconds']:.0f} s"
        self._end(task, f"{', '.join(shown)} ({how})")

    def stopped(self, task: Any, reason: str) -> None:
        self.say(f"{task.name}: {reason}; the same command goes on from there")

    def failed(self, task: Any, reason: str) -> None:
        if isinstance(task, Cost):
            self.say(f"{task.name}: FAILED: {reason}")
            return
        self.failures += 1
        self._end(task, f"FAILED: {reason}")

    def _end(self, task: Any, text: str) -> None:
        self.complete += task.config.steps
        ended = self.done + self.failures - self.first
        left = (time.monotonic() - self.began) / ended * (self.runs - self.first - ended)
        rest = f"{math.ceil(left / 60)} min" if left > 90 else f"{math.ceil(left)} s"
        more = f"; about {rest} left" if left > 0 and self.bar is None else ""
        self.say(f"[{self.done + self.failures}/{self.runs}] {task.name}: {text}{more}")

    def tick(self, running: Sequence[Any]) -> None:
        if self.bar is None:
            return
        states = []
        at = self.complete
        for task in running:
            if isinstance(task, Run):
                last = next(iter(read_lines(task.folder / "metrics.jsonl")[-1:]), {"step": 0})
                at += last["step"]
                states.append(f"{task.name} {last['step']}/{task.config.steps}")
        self.bar.set_postfix_str(f"{self.done}/{self.runs} runs; " + ", ".join(states))
        self.bar.update(max(0, at - self.bar.n))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
