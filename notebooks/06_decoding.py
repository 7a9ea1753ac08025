# %% [markdown]
# # A beam search, drawn as a tree
#
# A model gives the probability of each next token, $p(y_t \mid y_1 \dots y_{t-1}, x)$. The output with the largest
# product of them is wanted, and there are $V^n$ outputs of n tokens. Greedy search takes the most likely token at each
# step, and never takes it back; a beam search keeps the `beams` best beginnings at each step.

# %%
# %matplotlib inline
import itertools
import math
from typing import NamedTuple

from transformer.analysis import plots

# %% [markdown]
# ## A model that one can read
#
# The next word depends on the last one only. The most likely first word leads astray: after "the" all that follows is
# about equally likely.

# %%
END = "."
NEXT = {
    "": {"the": 0.5, "a": 0.4, "dogs": 0.1},
    "the": {"dog": 0.3, "cat": 0.3, "meadow": 0.2, "street": 0.2},
    "a": {"dog": 0.9, "cat": 0.1},
    "dogs": {"run": 0.8, "sleep": 0.2},
    "dog": {"runs": 0.8, "sleeps": 0.15, END: 0.05},
    "cat": {"sleeps": 0.6, "runs": 0.3, END: 0.1},
    "meadow": {END: 0.7, "runs": 0.3},
    "street": {END: 0.9, "runs": 0.1},
    **{verb: {END: 1.0} for verb in ("runs", "sleeps", "run", "sleep")},
}


class Beginning(NamedTuple):
    """Words so far, the log of their probability, and the node of the tree that the last one is."""

    words: tuple[str, ...]
    log_prob: float
    node: int

    @property
    def ended(self) -> bool:
        return self.words[-1:] == (END,)


def beam_search(beams: int) -> tuple[Beginning, list[plots.Node]]:
    """The best ended output that was found, and everything that was looked at."""
    nodes = [plots.Node(-1, "begin", kept=True)]
    open_, ended = [Beginning((), 0.0, 0)], []
    while open_:
        candidates = []
        for beginning in open_:
            for word, chance in NEXT[beginning.words[-1] if beginning.words else ""].items():
                log_prob = beginning.log_prob + math.log(chance)
                nodes.append(plots.Node(beginning.node, f"{word}  {math.exp(log_prob):.3f}", kept=False))
                candidates.append(Beginning((*beginning.words, word), log_prob, len(nodes) - 1))
        kept = sorted(candidates, key=lambda c: -c.log_prob)[:beams]
        for one in kept:
            nodes[one.node] = plots.Node(nodes[one.node].parent, nodes[one.node].label, kept=True)
        ended += [one for one in kept if one.ended]
        # An open beginning only loses by what follows: one that is behind the best ended output cannot win any more.
        best = max((one.log_prob for one in ended), default=-math.inf)
        open_ = [one for one in kept if not one.ended and one.log_prob > best]
    found = max(ended, key=lambda one: one.log_prob)
    place = found.node
    while place >= 0:
        nodes[place] = plots.Node(nodes[place].parent, nodes[place].label, kept=True, best=True)
        place = nodes[place].parent
    return found, nodes


# %% [markdown]
# ## A beam of 1: greedy

# %%
greedy, nodes = beam_search(1)
print(" ".join(greedy.words), f"{math.exp(greedy.log_prob):.3f}")
plots.tree(nodes)

# %% [markdown]
# ## A beam of 2
#
# "a" is kept beside "the", and pays off a word later. The number behind each word is the probability of all words up to
# it; what is grey was looked at and dropped.

# %%
found, nodes = beam_search(2)
print(" ".join(found.words), f"{math.exp(found.log_prob):.3f}")
plots.tree(nodes)

# %% [markdown]
# ## Is it the best of all?
#
# Here all outputs can be listed. The wider the beam, the fewer are missed; a beam as wide as the tree misses none.


# %%
def every(words: tuple[str, ...] = (), chance: float = 1.0) -> list[tuple[float, tuple[str, ...]]]:
    """All outputs with their probabilities."""
    if words[-1:] == (END,):
        return [(chance, words)]
    follow = NEXT[words[-1] if words else ""].items()
    return list(itertools.chain.from_iterable(every((*words, word), chance * share) for word, share in follow))


outputs = every()
assert math.isclose(sum(chance for chance, _ in outputs), 1.0)
best_chance, best_words = max(outputs)
for beams in (1, 2, 3, 10):
    found, _ = beam_search(beams)
    print(f"beam {beams:2}: {math.exp(found.log_prob):.3f} {' '.join(found.words)}")
assert found.words == best_words
assert math.isclose(math.exp(found.log_prob), best_chance)

# %% [markdown]
# ## Long outputs lose
#
# Every word multiplies by a number below 1, so short outputs win. GNMT's length penalty (Wu et al. 2016, equation 14)
# divides the log-probability by $((5 + n) / 6)^\alpha$; with $\alpha = 0$ it is as before.

# %%
for alpha in (0.0, 0.6, 1.0):
    scored = [(math.log(chance) / ((5 + len(words)) / 6) ** alpha, words) for chance, words in outputs]
    print(
        f"alpha {alpha}:",
        "; ".join(f"{' '.join(words)} {score:.2f}" for score, words in sorted(scored, reverse=True)[:3]),
    )
