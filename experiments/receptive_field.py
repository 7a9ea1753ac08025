"""How far back can stacked windows see?

Hypothesis: N causal layers of window w see exactly N times w tokens back, not one more: recall is near perfect up to
that distance and at chance past it.

Source: the receptive field of stacked windows, Beltagy et al. 2020, "Longformer", section 3.1 (arXiv 2004.05150), and
of causal ones, Jiang et al. 2023, "Mistral 7B" (arXiv 2310.06825). The task is associative recall: each of two keys
is stored once with one of four values, in a row of fillers and queries; at a query of a key, what is its value?
Queries stand at every distance from what they ask for, so one model shows its whole receptive field. There are no
position encodings, so nothing but the windows knows of distance.
"""

from typing import Any, cast

import numpy as np

from experiments.lab import recall
from transformer.config import Config, DataConfig, ModelConfig, OptimizerConfig, override

LAYERS, WINDOWS = (1, 2, 3), (4, 8)
REFERENCE = "layers1-window4"
PRIMARY = "test/recall_inside"
MATTERS = 0.05  # of all queries
MAIN_METRICS = [PRIMARY, "test/recall_outside", "test/recall_at_edge", "test/recall_past_edge"]

LENGTH, ROWS, TEST_ROWS = 48, 32, 1024
CONFIG = Config(
    steps=800,
    label_smoothing=0.0,
    model=ModelConfig(
        family="decoder_only", positions="none", d_model=64, d_ff=128, num_heads=4, norm="pre", dropout=0.0,
        vocab_size=recall.VOCAB,
    ),
    data=DataConfig(name="recall"),
    optimizer=OptimizerConfig(schedule="cosine", learning_rate=3e-3, warmup_steps=50),
)  # fmt: skip


def cases() -> dict[str, dict[str, Any]]:
    """A case for each model."""
    return {
        f"layers{layers}-window{window}": {"layers": layers, "window": window}
        for layers in LAYERS
        for window in WINDOWS
    }


def config(layers: int, window: int) -> Config:
    """What a case trains."""
    return override(CONFIG, {"model.num_layers": layers, "model.attention": [f"window:{window}"]})


def measure_case(layers: int, window: int, seed: int) -> dict[str, Any]:
    """Trains a decoder and gives its accuracy up to N · w and past it, and by distance."""
    import jax
    import jax.numpy as jnp

    from transformer.model.families import build
    from transformer.model.tokens import Tokens

    given = config(layers, window)
    model = build(given.model)

    def where(rows: int) -> Tokens:
        return Tokens(jnp.tile(jnp.arange(LENGTH), (rows, 1)), jnp.ones((rows, LENGTH), jnp.int32))

    def values(params: Any, tokens: Any) -> Any:
        return cast(Any, model.apply(params, tokens, where(tokens.shape[0])))[..., : recall.VALUES]

    rng = np.random.default_rng(seed)
    batches = (recall.draw(rng, ROWS, LENGTH)[:2] for _ in range(given.steps))
    params = model.init(jax.random.key(seed), jnp.zeros((1, LENGTH), jnp.int32), where(1))
    fit = recall.trainer(values, given.steps, given.optimizer.warmup_steps, given.optimizer.learning_rate)
    params = fit(params, batches)

    # Rows that no seed trains on.
    tokens, answers, distances = recall.draw(np.random.default_rng(10_000 + seed), TEST_ROWS, LENGTH)
    right = np.asarray(jax.jit(values)(params, tokens).argmax(-1)) == answers

    def asked(low: int, high: int) -> Any:
        return (distances > low) & (distances <= high)

    def accuracy(low: int, high: int) -> float | None:
        return float(right[asked(low, high)].mean()) if asked(low, high).any() else None

    bins = [(low, low + WINDOWS[0]) for low in range(0, LENGTH, WINDOWS[0])]
    reach = layers * window
    return {
        "metrics": {
            "test/recall_inside": accuracy(0, reach),
            "test/recall_outside": accuracy(reach, LENGTH),
            "test/recall_at_edge": accuracy(reach - 1, reach),
            "test/recall_past_edge": accuracy(reach, reach + 1),
        },
        "notes": [f"Guessing gives {100 / recall.VALUES:.0f} %."],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "by_length": {
            "axis": "distance to what is asked for (tokens)",
            "trained_to": LENGTH,
            "limit": None,
            "metrics": ["accuracy"],
            "rows": [
                {"low": a, "high": b, "count": int(asked(a, b).sum()), "accuracy": accuracy(a, b)} for a, b in bins
            ],
        },
    }
