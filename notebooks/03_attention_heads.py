# %% [markdown]
# # What the heads look at
#
# First in a translation model that is trained here for some minutes, then in real pretrained weights, where a folder of
# them is given. The same pictures, to point and click at: `python -m transformer.heads --workdir=... --text="..."`.

# %%
# %matplotlib inline
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import transformer
from transformer.analysis import plots
from transformer.analysis.attention import ablated
from transformer.analysis.heads import head_statistics, rollout
from transformer.config import load_file, override
from transformer.reading import of_folder
from transformer.train import train

TOY = "TOY" in os.environ  # a few steps of a small model, to see that all of it runs
WORKDIR = os.environ.get("WORKDIR")  # a run of a translation, in place of the one that is trained here
PRETRAINED = os.environ.get("PRETRAINED")  # a folder of a BERT model, such as all-MiniLM-L6-v2

# %%
if WORKDIR is None:
    ROOT = Path("configs") if Path("configs").is_dir() else Path("..") / "configs"
    config = load_file(ROOT / "quantities.py")
    if TOY:
        config = override(config, {"steps": 2, "model.num_layers": 1, "model.d_model": 16, "model.d_ff": 16,
                                   "optimizer.warmup_steps": 1})  # fmt: skip
    WORKDIR = tempfile.mkdtemp()
    train(config, Path(WORKDIR), quiet=True)
run = transformer.load_run(WORKDIR)
example = run.source.split("test")[0]
source, target = (example[name] for name in run.source.pair(run.config.data))
print(source, target, sep="\n")

# %% [markdown]
# ## Cross-attention as alignment
#
# The decoder reads the translation token by token, and from each it writes the next one. Where does it look in the
# source? The mean of the heads of the last layer comes close to which word translates which.

# %%
reading = run.reading(source, target)
watched = reading.attention()
written = [*reading.tokens["decoder"][1:], "[end]"]
cross = watched["decoder"]["cross"]
plots.matrix(np.asarray(cross.weights[-1, 0].mean(0)), "source", "written next", "mean weight of the heads",
             rows=written, columns=reading.tokens["encoder"])  # fmt: skip

# %% [markdown]
# ## Every head in two numbers
#
# Entropy in nats: 0 for a head that looks at one token, ln S for one that looks at all alike. Distance in tokens: 0 for
# a head that looks at itself.

# %%
statistics = head_statistics(watched["encoder"]["self"])
layers = [f"layer {i + 1}" for i in range(statistics.entropy.shape[0])]
heads = [str(i + 1) for i in range(statistics.entropy.shape[1])]
plots.matrix(statistics.entropy, "head", "encoder", "entropy (nats)", layers, heads, numbers=True)

# %%
plots.matrix(statistics.distance, "head", "encoder", "mean distance (tokens)", layers, heads, numbers=True)

# %% [markdown]
# ## Through all layers: rollout
#
# A map says what one layer mixes. What has come from each input to each place after all layers is the product of the
# maps, each averaged with the identity for the residual stream (Abnar & Zuidema 2020).

# %%
flow = rollout(watched["encoder"]["self"].weights)[-1, 0]
plots.matrix(flow, "input", "place in the last layer", "share", reading.tokens["encoder"], reading.tokens["encoder"])

# %% [markdown]
# ## Which heads matter? Take them out
#
# What a head looks at does not say what it is good for. So the contribution of one head after another is set to 0
# (Michel et al. 2019), and the loss is measured on a batch of unseen sentences.

# %%
batch = next(run.task.batches(run.source, "test").evaluation())
arguments = run.task.arguments(batch)
real = run.task.weights(batch)
shape = (run.task.model_config.num_layers, run.task.model_config.num_heads)


@jax.jit
def loss(keep: jax.Array) -> jax.Array:
    """Nats a token, with the contributions of the decoder's cross-attention heads multiplied by keep [N, H]."""
    logits = ablated(run.model, run.params, {"decoder": {"cross": keep}}, *arguments)
    return (optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]) * real).sum() / real.sum()


count = shape[0] * shape[1]
without_one = [loss(1 - jnp.eye(count)[i].reshape(shape)) for i in range(count)]
rise = np.array(without_one).reshape(shape) - float(loss(jnp.ones(shape)))
print(f"loss with all heads {float(loss(jnp.ones(shape))):.3f}, without any {float(loss(jnp.zeros(shape))):.3f}")
plots.matrix(
    1000 * rise, "head of cross-attention", "decoder", "rise of the loss (nats / 1000)", layers, heads, numbers=True
)

# %% [markdown]
# ## Real weights: which heads tie "it" to "animal"?
#
# "The animal didn't cross the street because it was too tired." In a BERT-type model each token sees all others. The
# share of its attention that "it" spends on "animal", and on "street", for every head:

# %%
TIRED = "The animal didn't cross the street because it was too tired."
WIDE = "The animal didn't cross the street because it was too wide."


def looks(text: str, word: str) -> np.ndarray:
    """[N, H]: the weight of "it" on a word."""
    reading = of_folder(Path(PRETRAINED), text)
    weights = reading.attention()["encoder"]["self"].weights
    tokens = reading.tokens["encoder"]
    return np.asarray(weights[:, 0, :, tokens.index("it"), tokens.index(word)])


if PRETRAINED is None:
    print("no folder of weights was given (PRETRAINED=FOLDER): this part is left out")
else:
    animal, street = looks(TIRED, "animal"), looks(TIRED, "street")
    for place in np.argsort(-animal, axis=None)[:5]:
        layer, head = np.unravel_index(place, animal.shape)
        shares = f"{animal[layer, head]:.0%} on animal, {street[layer, head]:.0%} on street"
        print(f"layer {layer + 1}, head {head + 1:2}: {shares}")
    names = [f"layer {i + 1}" for i in range(len(animal))], [str(i + 1) for i in range(animal.shape[1])]
    figure = plots.matrix(100 * animal, "head", "", '"it" on "animal" (%)', *names, numbers=True)
figure if PRETRAINED else None

# %% [markdown]
# Does a head follow the meaning? With "wide" in place of "tired", "it" is the street. A head that resolves the pronoun
# would move its weight; one that looks at nouns, or at the subject, would not.

# %%
if PRETRAINED is not None:
    moved = (looks(WIDE, "street") - looks(WIDE, "animal")) - (street - animal)
    for place in np.argsort(-moved, axis=None)[:3]:
        layer, head = np.unravel_index(place, moved.shape)
        print(f"layer {layer + 1}, head {head + 1:2}: {moved[layer, head]:+.1%} towards the street")
