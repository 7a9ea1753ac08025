"""Beam search by two rules: GNMT's length penalty with an exact stop, and Hugging Face's."""

import math
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

    penalty: Callable[[Array, float], Array]  # (length, alpha) -> divisor of the sum of log-probabilities
    refills: bool  # twice as many candidates are drawn, so that ended ones do not shrink the beam
    keeps: Callable[[int, int], int]  # (beams, nbest) -> how many ended hypotheses compete
    looks_ahead: bool  # bound an open hypothesis by the best score of any later length, not of its current one
    early: bool = False  # a row ends as soon as it has kept that many


RULES = {
    "gnmt": Rule(lambda length, alpha: ((5 + length) / 6) ** alpha, False, lambda beams, nbest: nbest, True),
    "hf": Rule(lambda length, alpha: length**alpha, True, lambda beams, nbest: beams, False),
    "hf_early": Rule(lambda length, alpha: length**alpha, True, lambda beams, nbest: beams, False, True),
}
"""gnmt: Wu et al. 2016, section 7, equation 14. hf, hf_early: `generate(early_stopping=False)` and `True` there."""


class _Ended(NamedTuple):
    """The best ended hypotheses, best first; score -inf: none."""

    tokens: Int[Array, "B kept max_new"]
    lengths: Int[Array, "B kept"]
    log_probs: Float[Array, "B kept"]
    scores: Float[Array, "B kept"]


class _Search(NamedTuple):
    steps: Int[Array, ""]  # steps so far: the length of each open hypothesis
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
    """The `nbest` best outputs of a search over `beams` hypotheses per row, best first.

    At every step the `beams` most likely continuations of a row's open hypotheses are kept. Those that end (with EOS,
    which is forbidden among the first `min_new` tokens, or at the length limit) leave the beam and are ranked by
    log-probability / penalty(length), with EOS counted. A beam of 1 is greedy decoding. Ties go to the older
    hypothesis, then to the better parent, then to the lowest id.

    With rule "gnmt" a row stops when no open hypothesis can beat the worst of `nbest` ended ones. Log-probabilities
    only fall, so the bound is the current sum over the largest penalty to come, and the result is that of a search
    without this stop. "hf" and "hf_early" follow Hugging Face's `generate`.

    The leaves of `state` begin with the row axis, or are scalars. They are reordered with the hypotheses, except for
    those that `step` returns unchanged (an encoder's memory). UserError: fewer than one beam or output, an unknown
    rule, or more outputs than beams with a Hugging Face rule.
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
        log_probs=jnp.full((rows, beams), -jnp.inf).at[:, 0].set(0),  # one empty hypothesis
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
        logits = logits.astype(jnp.float32)
        allowed = without_eos(logits, eos_id, search.steps < min_new) if min_new else logits
        parents, tokens, sums, broken = _candidates(logits, allowed, search.log_probs, wanted)
        ok = search.ok & (search.done | ~broken)
        length = search.steps + 1
        ends = (tokens == eos_id) | (length >= rooms)[:, None]
        written = _gathered(search.written, parents).at[:, :, search.steps].set(tokens)

        # Only the first `beams` candidates may end, and only in rows that are not done.
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
        source = _gathered(parents, picked)

        def follow(old: Array, new: Array) -> Array:
            # A leaf that step returns unchanged is the same for all hypotheses of a row. Hypotheses move within their
            # row, so that no device needs those of another.
            if new is old or not jnp.ndim(new):
                return new
            return _gathered(new.reshape(rows, beams, *new.shape[1:]), source).reshape(new.shape)

        reach = still[:, 0] / by.penalty(length.astype(jnp.float32), alpha)
        if by.looks_ahead:  # the penalty is monotonic, so its largest value is at the next length or the last
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
    logits: Float[Array, "rows V"], allowed: Float[Array, "rows V"], log_probs: Float[Array, "B beams"], wanted: int
) -> tuple[Int[Array, "B K"], Int[Array, "B K"], Float[Array, "B K"], Bool[Array, " B"]]:
    """The `wanted` most likely continuations of a row's hypotheses: parent, token, sum of log-probabilities; and
    whether an open hypothesis has invalid logits. In `allowed` what is forbidden is -inf. Tokens of one hypothesis are
    ordered by logits before the sums are compared, so that rounding makes no new ties within it."""
    rows, beams = log_probs.shape
    whole = jax.nn.logsumexp(logits, axis=-1)
    broken = (~jnp.isfinite(whole).reshape(rows, beams) & (log_probs > -jnp.inf)).any(axis=1)
    each = min(wanted, logits.shape[1])
    best, ids = largest(allowed, each)
    sums = log_probs[:, :, None] + (best - whole[:, None]).reshape(rows, beams, each)
    sums = jnp.where(jnp.isnan(sums), -jnp.inf, sums)  # top_k would put them first
    sums, index = lax.top_k(sums.reshape(rows, beams * each), min(wanted, beams * each))
    return index // each, _gathered(ids.reshape(rows, beams * each), index), sums, broken


def largest(x: Float[Array, "rows V"], count: int) -> tuple[Float[Array, "rows K"], Int[Array, "rows K"]]:
    """`lax.top_k` in two stages: the `count` largest numbers are in those `count` blocks of neighbours that have the
    largest maxima; ties go to the lowest index in both. With blocks of about sqrt(V / count) numbers, the fewest are
    sorted: as many maxima as candidates."""
    rows, size = x.shape
    width = math.isqrt(size // count) // 8 * 8
    blocks = size // max(width, 1)
    if width == 0 or blocks < count:
        best, index = lax.top_k(x, count)
        return best, index
    inside, rest = x[:, : blocks * width].reshape(rows, blocks, width), x[:, blocks * width :]
    chosen = jnp.sort(lax.top_k(inside.max(axis=-1), count)[1], axis=-1)  # so that the indices stay in order
    few = jnp.concatenate([_gathered(inside, chosen).reshape(rows, -1), rest], axis=1)
    which = (chosen[..., None] * width + jnp.arange(width)).reshape(rows, -1)
    which = jnp.concatenate([which, jnp.broadcast_to(jnp.arange(blocks * width, size), rest.shape)], axis=1)
    best, index = lax.top_k(few, count)
    return best, _gathered(which, index)


def _best_ended(old: _Ended, new: _Ended) -> _Ended:
    """The best of both; as many as `old` has."""
    both = [jnp.concatenate(pair, axis=1) for pair in zip(old, new, strict=True)]
    _, picked = lax.top_k(both[-1], old.scores.shape[1])
    return _Ended(*(_gathered(x, picked) for x in both))


def _gathered(x: Array, index: Int[Array, "B n"]) -> Array:
    """`x[b, index[b, i], ...]` for each row."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
