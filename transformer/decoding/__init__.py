"""Decoding over `step(tokens, positions, state) -> (logits, state)`; knows no model. DECODERS, name -> strategy."""

from collections.abc import Callable
from typing import Any

from transformer.decoding.greedy import greedy

DECODERS: dict[str, Callable[..., Any]] = {"greedy": greedy}
