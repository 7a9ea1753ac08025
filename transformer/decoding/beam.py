"""Beam search, by two rules: GNMT's penalty with a stop that loses nothing, and Hugging Face's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from transformer.decoding.hypotheses import Decoded, Step, room, without_eos
from transformer.errors import UserError


class Rule(NamedTuple):
    """How hypotheses are kept, scored and stopped."""

    penalty: Callable[[Array, float], Array]  # (length, alpha) -> what the sum of log-probabilities is divided by
    refills: bool  # twice as many candidates are drawn, so that those that end leave no gap among the open ones
    keeps: Callable[[int, int], int]  # (beams, nbest) -> how many ended hypotheses compete
    looks_ahead: bool  # an open hypothesis is thought to reach the best score of any length to come, not of its length
    early: bool = False  # a row ends as soon as it has kept that many


RULES = {
    "gnmt": Rule(lambda length, alpha: ((5 + length) / 6) ** alpha, False, lambda beams, nbest: nbest, True),
    "hf": Rule(lambda length, alpha: length**alpha, True, lambda beams, nbest: beams, False),
    "hf_early": Rule(lambda length, alpha: length**alpha, True, lambda beams, nbest: beams, False, True),
}
"""gnmt: Wu et al. 2016, section 7, equation 14. hf, hf_early: `generate(early_stopping=False)` and `True` there."""


class _Ended(NamedTuple):
    """The best hypotheses that ended, best first; score -inf: none."""

    tokens: Int[Array, "B kept max_new"]
    lengths: Int[Array, "B kept"]
    log_probs: Float[Array, "B kept"]
    scores: Float[Array, "B kept"]


class _Search(NamedTuple):
    """Between two steps."""

    steps: Int[Array, ""]  # done so far: tokens of each open hypothesis
    tokens: Int[Array, "B beams"]  # the last of each open hypothesis
    written: Int[Array, "B beams max_new"]
    log_probs: Float[Array, "B beams"]  # of the open hypotheses, best first; -inf: none
    ended: _Ended
    done: Bool[Array, " B"]
    ok: Bool[Array, " B"]
    state: Any  # of B * beams rows


def beam(
    step: Step,
    state: Any,
    first_tokens: Int[Array, " B"],
    first_positions: Int[Array, " B"],
    max_new: int,
    limit: int | None,
    eos_id: int,
    *,
    beams: int = 4,
    nbest: int = 1,
    alpha: float = 0.6,
    rule: str = "gnmt",
    min_new: int = 0,
) -> Decoded:
    """The `nbest` best of what a search over `beams` hypotheses a row finds, best first.

    At every step the `beams` most likely continuations of a row's open hypotheses are kept; those that end (with EOS,
    which is forbidden among the first `min_new` tokens, or for want of room) leave the beam and compete by
    log-probability / penalty(length), EOS counted. A beam of 1 is greedy decoding. Ties go to the older hypothesis,
    then to the better parent, then to the lowest id.

    By the rule "gnmt" a row stops when no open hypothesis can beat the worst of `nbest` ended ones: log-probabilities
    only fall, so the best score within reach is today's sum over the largest penalty to come. What is returned is what
    a search that never stops would return. "hf" and "hf_early" do what Hugging Face's `generate` does.

    The leaves of `state` begin with the row axis, or are scalars; they follow the hypotheses by index, but for those
    that `step` hands back as they are (an encoder's memory). UserError: fewer than one beam or output, an unknown
    rule, more outputs than beams by a rule that keeps no more.
    """
    if rule not in RULES:
        raise UserError(f"there is no beam search rule {rule!r}: choose one of {', '.join(RULES)}")
    if beams < 1:
        raise UserError(f"beam must be at least 1, not {beams}")
    by = RULES[rule]
    kept = by.keeps(beams, nbest)
    if not 1 <= nbest <= kept:
        raise UserError(f"nbest must be from 1 to {max(kept, 1)}, not {nbest}: a wider beam finds more")
    rows = first_tokens.shape[0]
    rooms = room(first_positions, max_new, limit)

    def spread(x: Array) -> Array:
        return jnp.repeat(x, beams, axis=0) if jnp.ndim(x) else x

    none = jnp.full((rows, kept), -jnp.inf)
    nothing = jnp.full((rows, kept, max_new), eos_id, jnp.int32)
    start = _Search(
        steps=jnp.int32(0),
        tokens=spread(first_tokens.astype(jnp.int32)).reshape(rows, beams),
        written=jnp.full((rows, beams, max_new), eos_id, jnp.int32),
        log_probs=jnp.full((rows, beams), -jnp.inf).at[:, 0].set(0),  # one hypothesis: that nothing is said
        ended=_Ended(nothing, jnp.zeros((rows, kept), jnp.int32), none, none),
        done=rooms < 1,
        ok=jnp.ones(rows, bool),
        state=jax.tree.map(spread, state),
    )

    def goes_on(search: _Search) -> Bool[Array, ""]:
        return (search.steps < max_new) & ~search.done.all()

    def one_more(search: _Search) -> _Search:
        places = spread(first_positions + search.steps)
        logits, stepped = step(search.tokens.reshape(-1, 1), places[:, None], search.state)
        wanted = 2 * beams if by.refills else beams
        parents, tokens, sums, broken = _candidates(
            logits, search.log_probs, wanted, eos_id, forbidden=search.steps < min_new
        )
        ok = search.ok & (search.done | ~broken)
        length = search.steps + 1
        ends = (tokens == eos_id) | (length >= rooms)[:, None]
        written = _gathered(search.written, parents).at[:, :, search.steps].set(tokens)

        # Only the first `beams` candidates may end; a row that is done takes no more.
        may_end = ends[:, :beams] & ~search.done[:, None]
        ended = _best_ended(
            search.ended,
            _Ended(
                written[:, :beams],
                jnp.full((rows, beams), length),
                sums[:, :beams],
                jnp.where(may_end, sums[:, :beams] / by.penalty(length.astype(jnp.float32), alpha), -jnp.inf),
            ),
        )
        still, picked = lax.top_k(jnp.where(ends, -jnp.inf, sums), beams)
        source = (jnp.arange(rows)[:, None] * beams + _gathered(parents, picked)).reshape(-1)

        def follow(old: Array, new: Array) -> Array:
            # What step hands back as it is, is the same for all hypotheses of a row.
            return new if new is old or not jnp.ndim(new) else new[source]

        reach = still[:, 0] / by.penalty(length.astype(jnp.float32), alpha)
        if by.looks_ahead:  # penalties rise or fall with the length, so the largest is that of the next one or the last
            ahead = (by.penalty(n.astype(jnp.float32), alpha) for n in (length + 1, rooms))
            reach = jnp.maximum(*(still[:, 0] / penalty for penalty in ahead))
        worst = ended.scores[:, -1]
        stops = (worst >= reach) | (by.early & (worst > -jnp.inf)) | (length >= rooms) | ~ok
        return _Search(
            steps=length,
            tokens=_gathered(tokens, picked),
            written=_gathered(written, picked),
            log_probs=still,
            ended=ended,
            done=search.done | stops,
            ok=ok,
            state=jax.tree.map(follow, search.state, stepped),
        )

    end = lax.while_loop(goes_on, one_more, start) if max_new else start
    best = _Ended(*(x[:, :nbest] for x in end.ended))
    lengths = jnp.where(best.scores > -jnp.inf, best.lengths, 0)
    return Decoded(best.tokens, lengths, best.log_probs, best.scores, end.ok)


def _candidates(
    logits: Float[Array, "rows V"],
    log_probs: Float[Array, "B beams"],
    wanted: int,
    eos_id: int,
    *,
    forbidden: Bool[Array, ""],
) -> tuple[Int[Array, "B K"], Int[Array, "B K"], Float[Array, "B K"], Bool[Array, " B"]]:
    """The `wanted` most likely continuations of a row's hypotheses: parent, token, sum of log-probabilities.

    The last answer: whether the logits of an open hypothesis are no distribution. Tokens are ordered by their logits
    before they meet those of other hypotheses, so that rounding of the sums makes no new ties within one.
    """
    rows, beams = log_probs.shape
    logits = logits.astype(jnp.float32)
    whole = jax.nn.logsumexp(logits, axis=-1)
    broken = (~jnp.isfinite(whole).reshape(rows, beams) & (log_probs > -jnp.inf)).any(axis=1)
    each = min(wanted, logits.shape[1])
    best, ids = lax.top_k(without_eos(logits, eos_id, forbidden), each)
    sums = log_probs[:, :, None] + (best - whole[:, None]).reshape(rows, beams, each)
    sums = jnp.where(jnp.isnan(sums), -jnp.inf, sums)  # top_k would put them first
    sums, index = lax.top_k(sums.reshape(rows, -1), min(wanted, beams * each))
    return index // each, _gathered(ids.reshape(rows, -1), index), sums, broken


def _best_ended(old: _Ended, new: _Ended) -> _Ended:
    """The best of both, as many as `old` has."""
    both = [jnp.concatenate(pair, axis=1) for pair in zip(old, new, strict=True)]
    _, picked = lax.top_k(both[-1], old.scores.shape[1])
    return _Ended(*(_gathered(x, picked) for x in both))


def _gathered(x: Array, index: Int[Array, "B n"]) -> Array:
    """`x[b, index[b, i], ...]` for each row."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
