"""Does a longer word have a larger score?

Hypothesis: by a hundredth a letter.

Source: made up, with known answers.
"""

from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import Config, override

REFERENCE, PRIMARY, MATTERS = "one", "test/accuracy", 0.01
WORDS = ("one", "three", "eleven")


def cases() -> dict[str, dict[str, Any]]:
    return {word: {"word": word} for word in WORDS}


def config(word: str) -> Config:
    return override(Config(), {"model.num_layers": len(word), "steps": 7})


def measure_case(word: str, seed: int) -> dict[str, Any]:
    if (Path(__file__).parent / "broken").exists() and (word, seed) == ("three", 1):
        raise ValueError("the fake broke")
    noise = np.random.default_rng([seed, len(word)]).normal(scale=1e-4)
    return {"metrics": {"test/accuracy": 0.5 + len(word) / 100 + noise}, "parameters": len(word)}
