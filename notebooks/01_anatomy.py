# %% [markdown]
# # Anatomy of a Transformer
#
# Each block as a formula, then as a few lines of NumPy, then as a picture; and after each the check that the library
# (`transformer.model`) computes the same. The paper is Vaswani et al. 2017, "Attention Is All You Need".

# %%
# %matplotlib inline
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from transformer.analysis import plots
from transformer.config import ModelConfig
from transformer.model.attention import attend
from transformer.model.families import build
from transformer.model.masks import band, visible
from transformer.model.positions import sinusoid
from transformer.model.stacks import Layer
from transformer.model.tokens import Tokens

# %% [markdown]
# ## 1. Text to tokens: byte-pair encoding
#
# Begin with single letters. Count every pair of neighbours, weighted by how often its word occurs; merge the most
# frequent pair into one new piece; repeat (Sennrich et al. 2016). Of equally frequent pairs, the one of the older
# pieces comes first.

# %%
WORDS = Counter(
    "low low low low low lower lower newest newest newest newest newest newest widest widest widest".split()
)
pieces = sorted({letter for word in WORDS for letter in word})  # the vocabulary: a piece's number is its place
split = {word: list(word) for word in WORDS}


def merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts of a word, with every occurrence of a pair as one piece."""
    out: list[str] = []
    for part in parts:
        out.append(part)
        # A piece that was just made is longer than the pair's second half, so it is not merged twice.
        if len(out) > 1 and (out[-2], out[-1]) == pair:
            out[-2:] = ["".join(pair)]
    return out


merges = []
for _ in range(7):
    counts: Counter[tuple[str, str]] = Counter()
    for word, times in WORDS.items():
        for pair in zip(split[word], split[word][1:], strict=False):
            counts[pair] += times
    best = min(counts, key=lambda pair: (-counts[pair], pieces.index(pair[0]), pieces.index(pair[1])))
    merges.append(best)
    pieces.append("".join(best))
    split = {word: merged(parts, best) for word, parts in split.items()}
    print(f"{counts[best]:2} times {best[0]!r} + {best[1]!r}:", "  ".join(" ".join(parts) for parts in split.values()))

# %% [markdown]
# The `tokenizers` library, given the same words and the same number of pieces, has made the same merges.

# %%
learner = tokenizers.Tokenizer(tokenizers.models.BPE())
learner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
trainer = tokenizers.trainers.BpeTrainer(vocab_size=len(pieces), show_progress=False)
learner.train_from_iterator([" ".join(WORDS.elements())], trainer)
by_hand = [piece for word in ("lowest", "newer") for piece in functools.reduce(merged, merges, list(word))]
assert learner.encode("lowest newer").tokens == by_hand
assert sorted(learner.get_vocab(), key=learner.get_vocab().get) == pieces
print(learner.encode("lowest newer").tokens)

# %% [markdown]
# ## 2. Tokens to vectors, and where they stand
#
# A table of V rows gives each token a vector of width D. Attention is blind to order, so each position adds a vector of
# its own:
#
# $$PE(p, 2i) = \sin(p / 10000^{2i/D}), \quad PE(p, 2i+1) = \cos(p / 10000^{2i/D})$$

# %%
L, D, H = 12, 16, 4
K = D // H
position, feature = np.mgrid[:L, :D]
angle = position / 10000 ** (2 * (feature // 2) / D)
encoding = np.where(feature % 2 == 0, np.sin(angle), np.cos(angle))
np.testing.assert_allclose(encoding, sinusoid(jnp.arange(L), D), atol=1e-5)
plots.matrix(encoding, "feature", "position", "PE")

# %% [markdown]
# ## 3. Attention
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right) V$$
#
# Each query is compared with each key; the softmax makes weights of the scores that sum to 1; the output is the mean of
# the values with these weights.

# %%
rng = np.random.default_rng(0)


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x) over its sum along the last axis; the largest is taken off first, so that nothing overflows."""
    exp = np.exp(x - x.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output and the weights; q, k, v are [H, L, K], the mask [L, L] says who may see whom."""
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    weights = softmax(np.where(mask, scores, -1e30))
    return weights @ v, weights


q, k, v = rng.normal(size=(3, H, L, K))
causal = np.tril(np.ones((L, L), bool))
out, weights = attention(q, k, v, causal)
by_library = attend(*(jnp.asarray(x.transpose(1, 0, 2)[None], jnp.float32) for x in (q, k, v)), causal=True)
np.testing.assert_allclose(out.transpose(1, 0, 2), by_library[0], atol=1e-5)
plots.matrix(weights[0], "key", "query", "weight: each row sums to 1")

# %% [markdown]
# A decoder's position may see itself and what is before it; that is the triangle. An encoder's sees all.
#
# **Why the square root?** Of vectors with independent features of variance 1, the dot product has variance d_k. Without
# the root, wide heads begin with scores of ±10 and more, the softmax gives all to one key, and its gradient vanishes.

# %%
widths = np.array([4, 16, 64, 256])
spread = [np.sum(rng.normal(size=(2000, w)) * rng.normal(size=(2000, w)), axis=1).std() for w in widths]
print(
    {
        int(w): f"deviation {s:.1f}, divided by the root {s / np.sqrt(w):.2f}"
        for w, s in zip(widths, spread, strict=True)
    }
)
np.testing.assert_allclose(spread / np.sqrt(widths), 1, atol=0.1)

# %% [markdown]
# ## 4. Many heads, the feed-forward layer, residuals and norms: one layer
#
# $$\mathrm{MultiHead}(x) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_H) W^O, \quad
# \mathrm{head}_h = \mathrm{Attention}(xW^Q_h, xW^K_h, xW^V_h)$$
# $$\mathrm{FFN}(x) = \max(0, xW_1 + b_1)W_2 + b_2, \quad
# \mathrm{Layer}(x) = \mathrm{Norm}(y + \mathrm{FFN}(y)), \; y = \mathrm{Norm}(x + \mathrm{MultiHead}(x))$$

# %%
config = ModelConfig(d_model=D, d_ff=4 * D, num_heads=H, num_layers=2, dropout=0.0, vocab_size=50)
layer = Layer(config, causal=True, window=None)
where = Tokens()  # one text a row, without padding
x = rng.normal(size=(L, D)) + encoding
weights_of = layer.init(jax.random.key(0), jnp.asarray(x[None], jnp.float32), where, None)["params"]


def heads_of(x: np.ndarray) -> np.ndarray:
    """[L, D] -> [H, L, K]."""
    return x.reshape(L, H, K).transpose(1, 0, 2)


def norm(x: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 over the features (its scale and bias are 1 and 0 at the beginning)."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps)


own = {name: np.asarray(part["kernel"], float) for name, part in weights_of["self_attention"].items()}
heads, _ = attention(*(heads_of(x @ own[name]) for name in ("query", "key", "value")), causal)
y = norm(x + heads.transpose(1, 0, 2).reshape(L, D) @ own["out"])
inner, outer = (weights_of["feed_forward"][name] for name in ("inner", "outer"))
forward = np.maximum(0, y @ inner["kernel"] + inner["bias"]) @ outer["kernel"] + outer["bias"]
result = norm(y + forward)
by_library, _ = layer.apply({"params": weights_of}, jnp.asarray(x[None], jnp.float32), where, None)
np.testing.assert_allclose(result, by_library[0], atol=1e-4)
plots.matrix(result, "feature", "position", "output of the layer")

# %% [markdown]
# Where are the weights? Attention has 4 matrices of D × D, the feed-forward layer 2 of D × 4D: two thirds of an encoder
# layer.

# %%
sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in weights_of.items()}
for name, size in sizes.items():
    print(f"{name:25} {size:6,} {size / sum(sizes.values()):6.1%}")
assert sizes["feed_forward"] == 2 * 4 * D**2 + 4 * D + D

# %% [markdown]
# ## 5. A model: layers, then logits and the loss
#
# The last vectors times the embedding table give a score for each token of the vocabulary; the loss is minus the log of
# the probability of the right one. Before training all V tokens are about equally likely, so it begins near ln V.

# %%
encoder_decoder = build(config)
source, target = (jnp.asarray(rng.integers(3, 50, (8, L))) for _ in range(2))
params = encoder_decoder.init(jax.random.key(1), source, where, target, where)
logits = np.asarray(encoder_decoder.apply(params, source, where, target[:, :-1], where))
chances = softmax(logits)
loss = -np.log(np.take_along_axis(chances, np.asarray(target)[:, 1:, None], axis=-1)).mean()
print(f"loss {loss:.2f}; ln V = {np.log(50):.2f}")
assert abs(loss - np.log(50)) < 1.5

# %% [markdown]
# What may see what, in the library's own words, for a window of two neighbours:

# %%
mask = visible(jnp.arange(L)[None], jnp.arange(L)[None], None, None, band(True, 2))[0]
plots.matrix(np.asarray(mask, float), "key", "query", "visible")
