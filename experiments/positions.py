"""Which position encoding, and which goes on past the lengths of training?

Hypothesis: at training length all encodings are close, and none is worst in an encoder. On longer sentences those of
distances (rotary, ALiBi, T5) hold better than those of places (sinusoidal, and learned, which has no entry there).

Source: Press et al. 2022, "Train short, test long" (arXiv 2108.12409), which finds sinusoids good for 20 to 50 tokens
past training, rotary for 100 to 200, T5's bias for 600 to 800, and ALiBi far past; Kazemnejad et al. 2023 (arXiv
2305.19466) find no encoding best on some tasks of a decoder.
"""

from typing import Any

from transformer.config import Config

BASE = "configs/quantities.py"
REFERENCE = "sinusoidal"  # the paper's
PRIMARY = "test/exact_match"
MATTERS = 0.02  # two points of a hundred: what is less does not matter


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Every encoding that is not another form of one here."""
    names = (REFERENCE, "learned", "rotary", "alibi", "t5", "none")
    return {name: {"model.positions": name} for name in names}
