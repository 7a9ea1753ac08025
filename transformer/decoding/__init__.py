"""Decoding over `step(tokens, positions, state) -> (logits, state)`, for any model. DECODERS, name -> strategy."""

from collections.abc import Callable

from transformer.decoding.beam import beam
from transformer.decoding.greedy import greedy
from transformer.decoding.hypotheses import Decoded
from transformer.decoding.sampling import sample

DECODERS: dict[str, Callable[..., Decoded]] = {"greedy": greedy, "sample": sample, "beam": beam}
