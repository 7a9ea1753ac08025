"""Options of decoding, and outputs. Imports no JAX, so that wrong flags are reported at once."""

import dataclasses
import math
from typing import Any, NamedTuple

from transformer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Manner:
    """Options of decoding. UserError: options that exclude each other, or impossible values."""

    beam: int = 0  # hypotheses of a beam search; 0 = greedy
    alpha: float = 0.6  # of GNMT's length penalty
    nbest: int = 1  # outputs of a line, best first
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0 = all
    top_p: float = 1.0
    seed: int = 0  # of the samples
    max_new: int | None = None  # most tokens of an output; None = the task's limit
    min_new: int = 0  # tokens before an output may end

    def __post_init__(self) -> None:
        most, hot = math.inf if self.max_new is None else self.max_new, "for the most likely text, leave out --sample"
        for wrong, sentence in (
            (self.beam < 0, f"--beam must be 0 (greedy) or more, not {self.beam}"),
            (not math.isfinite(self.alpha), f"--alpha must be a finite number, not {self.alpha}"),
            (self.sample and self.beam, f"--sample and --beam={self.beam} exclude each other: leave one of them out"),
            (
                not 1 <= self.nbest <= max(self.beam, 1),
                f"--nbest={self.nbest} must be from 1 to the beam's width, --beam={self.beam}: widen it",
            ),
            (
                not 0 < self.temperature < math.inf,
                f"--temperature must be above 0 and finite, not {self.temperature}: {hot}",
            ),
            (self.top_k < 0, f"--top_k must be 0 (all tokens) or more, not {self.top_k}"),
            (not 0 < self.top_p <= 1, f"--top_p must be above 0 and at most 1, not {self.top_p}"),
            (
                not 0 <= self.seed < 2**31,
                f"--seed must be a whole number from 0 to 2147483647, not {self.seed}",
            ),
            (most < 0, f"--max_new must be 0 or more, not {self.max_new}"),
            (not 0 <= self.min_new <= most, f"--min_new={self.min_new} must be from 0 to --max_new: lower it"),
            (
                not self.sample and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0),
                "--temperature, --top_k and --top_p change how samples are drawn: add --sample",
            ),
        ):
            if wrong:
                raise UserError(sentence)

    def strategy(self, numbers: Any) -> tuple[str, dict[str, Any]]:
        """The row of DECODERS, and its options for lines with these numbers."""
        least = {"min_new": self.min_new}
        if self.sample:
            from transformer.decoding.sampling import sentence_keys

            drawn = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
            return "sample", least | drawn | {"keys": sentence_keys(self.seed, numbers)}
        if self.beam:
            return "beam", least | {"beams": self.beam, "nbest": self.nbest, "alpha": self.alpha}
        return "greedy", least


GREEDY = Manner()


class Output(NamedTuple):
    """One output of a line."""

    text: str
    score: float = 0.0  # log-probability of its tokens; for beam search divided by the length penalty
    tokens: tuple[int, ...] = ()  # without EOS
    alignment: str = ""  # Pharaoh pairs


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.splitlines())
