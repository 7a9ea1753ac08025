"""Differences of a sweep, held to statsmodels and SciPy, and to sweeps that are simulated.

`python -m tests.experiments.lab.test_statistics` simulates 3,000 sweeps for each figure of experiments/README.md.
"""

import itertools
import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from experiments.lab import statistics
from experiments.lab.statistics import ALPHA, FIRST, Look, differences, mean_interval, next_look
from transformer.errors import UserError

NAMES = ["reference", "a", "b", "c", "d", "e"]
ROWS = {v: {v: 1.0, "reference": -1.0} for v in NAMES[1:]}
SPREADS = {
    "equal": [1.0] * 6,
    "half of them twice": [1.0, 1.0, 1.0, 2.0, 2.0, 2.0],
    "one twice": [1.0, 1.0, 1.0, 1.0, 1.0, 2.0],
    "from a half to two": [0.5, 0.66, 0.87, 1.15, 1.5, 2.0],
}
# Where the promise is not held with few seeds, as experiments/README.md says.
BEYOND = {
    "one three times": [1.0, 1.0, 1.0, 1.0, 1.0, 3.0],
    "the reference twice": [2.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "the reference three times": [3.0, 1.0, 1.0, 1.0, 1.0, 1.0],
}


def _values(table: np.ndarray) -> dict[str, dict[int, float]]:
    return {name: dict(enumerate(own.tolist())) for name, own in zip(NAMES, table, strict=False)}


def _first(seeds: int) -> list[Look]:
    return [next_look([], range(seeds), None)]


def _claims(table: np.ndarray, looks: list[Look]) -> set[str]:
    found = differences(_values(table), ROWS, looks)
    return {v for v, d in found.items() if d.low is not None and d.high is not None and (d.low > 0 or d.high < 0)}


def _noise(rng: np.random.Generator, spreads: list[float], seeds: int, correlation: float) -> np.ndarray:
    own = rng.standard_normal((6, seeds)) * np.array(spreads)[:, None]
    return math.sqrt(1 - correlation) * own + math.sqrt(correlation) * rng.standard_normal((1, seeds))


def _wrong(rng: np.random.Generator, spreads: list[float], seeds: int, correlation: float, sweeps: int) -> float:
    """The share of sweeps without a difference that claim one."""
    return sum(bool(_claims(_noise(rng, spreads, seeds, correlation), _first(seeds))) for _ in range(sweeps)) / sweeps


def _right(rng: np.random.Generator, seeds: int, sweeps: int) -> float:
    """The share of sweeps that find a difference of two spreads of paired differences."""
    tables = [_noise(rng, SPREADS["equal"], seeds, 0.0) for _ in range(sweeps)]
    for table in tables:
        table[1] += 2 * math.sqrt(2)
    return sum("a" in _claims(table, _first(seeds)) for table in tables) / sweeps


def test_two_variants_are_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 7))
    d = differences(_values(np.stack([a, b])), {"a": ROWS["a"]}, _first(7))["a"]
    test = stats.ttest_rel(b, a)
    half = stats.t.ppf(1 - FIRST * ALPHA / 2, 6) * np.std(b - a, ddof=1) / math.sqrt(7)
    assert d.mean == pytest.approx((b - a).mean())
    assert d.high - d.mean == pytest.approx(half, rel=0.02)
    assert d.p == pytest.approx(min(1.0, test.pvalue / FIRST), abs=0.01), "it is held to 5 %, as the interval is"


def test_estimates_are_those_of_least_squares_also_where_runs_are_missing() -> None:
    rng = np.random.default_rng(2)
    values = _values(rng.standard_normal((6, 5)) + 3 * np.arange(5))
    for v, seed in (("a", 0), ("a", 3), ("reference", 4), ("d", 1)):
        del values[v][seed]
    found = differences(values, ROWS, _first(5))
    cells = [(v, s, value) for v in NAMES for s, value in values[v].items()]
    design = np.array([[v == n for n in NAMES[1:]] + [s == k for k in range(1, 5)] + [1] for v, s, _ in cells], float)
    fit = sm.OLS([value for *_, value in cells], design).fit()
    assert [found[v].mean for v in NAMES[1:]] == pytest.approx(fit.params[:5])
    form = statistics._form(tuple((NAMES.index(v), s) for v, s, _ in cells), ((-1.0, 1.0, 0.0, 0.0, 0.0, 0.0),))
    assert form is not None
    assert form.freedom == fit.df_resid
    assert form.spread(np.array([[value for *_, value in cells]])) == pytest.approx(math.sqrt(fit.scale))


def test_without_moderation_the_critical_value_is_dunnetts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "PRIOR", math.inf)
    statistics._form.cache_clear()
    try:
        cells = tuple(itertools.product(range(6), range(3)))
        matrix = tuple(tuple(ROWS[v].get(n, 0.0) for n in NAMES) for v in NAMES[1:])
        critical, *_ = statistics._drawn.__wrapped__((cells,), matrix, (ALPHA,))
        shape = np.full((5, 5), 0.5) + 0.5 * np.eye(5)
        inside = stats.multivariate_t(shape=shape, df=10, seed=1).cdf([critical] * 5, lower_limit=[-critical] * 5)
        assert inside == pytest.approx(1 - ALPHA, abs=0.004)
    finally:
        statistics._form.cache_clear()


@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("spreads", SPREADS)
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_sweeps_without_a_difference_seldom_claim_one(spreads: str, seeds: int, correlation: float) -> None:
    rng = np.random.default_rng(seeds)
    sweeps = 600 if seeds > 3 else 1200
    # 5 % and two standard errors of so many sweeps; all of them together are held to 5 % below.
    assert _wrong(rng, SPREADS[spreads], seeds, correlation, sweeps) <= ALPHA + 2 * math.sqrt(
        ALPHA * (1 - ALPHA) / sweeps
    )


@pytest.mark.slow
def test_false_claims_in_all_are_at_most_one_in_twenty() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for spreads, seeds, correlation in itertools.product(SPREADS.values(), (3, 4, 6, 10), (0.0, 0.9)):
        shares.append(_wrong(rng, spreads, seeds, correlation, 1500))
    assert np.mean(shares) <= ALPHA
    assert max(shares) <= ALPHA + 0.012  # two standard errors


def test_two_spreads_are_found_with_three_seeds() -> None:
    """0.6 of the sweeps, where a paired t test of each variant with Holm's correction finds an eighth."""
    rng, found, paired, sweeps = np.random.default_rng(3), 0, 0, 1500
    for _ in range(sweeps):
        table = _noise(rng, SPREADS["equal"], 3, 0.0)
        table[1] += 2 * math.sqrt(2)
        found += "a" in _claims(table, _first(3))
        paired += stats.ttest_rel(table[1], table[0]).pvalue < ALPHA / 5
    assert found / sweeps >= 0.6
    assert paired / sweeps < 0.16


def test_intervals_are_narrower_than_those_of_three_numbers_each() -> None:
    """At the same cover of all five together: Bonferroni's paired intervals. Those of today's 95 % each cover less."""
    rng, ours, paired, single = np.random.default_rng(4), [], [], []
    for _ in range(300):
        table = _noise(rng, SPREADS["equal"], 3, 0.0)
        d = differences(_values(table), ROWS, _first(3))["a"]
        error = np.std(table[1] - table[0], ddof=1) / math.sqrt(3)
        ours.append((d.high - d.low) / 2)
        paired.append(stats.t.ppf(1 - ALPHA / 10, 2) * error)
        single.append(stats.t.ppf(1 - ALPHA / 2, 2) * error)
    assert np.median(paired) / np.median(ours) > 1.8
    assert np.median(single) / np.median(ours) > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("most", [8, None])
def test_looks_do_not_add_up_to_more_false_claims(most: int | None) -> None:
    rng, wrong, naive, sweeps = np.random.default_rng(12), 0, 0, 1500
    for _ in range(sweeps):
        table, looks, told, careless = _noise(rng, SPREADS["equal"], 8, 0.0), [], False, False
        for seeds in range(3, 9):
            looks.append(next_look(looks, range(seeds), most))
            told = told or bool(_claims(table[:, :seeds], looks))
            careless = careless or bool(_claims(table[:, :seeds], [Look(tuple(range(seeds)), ALPHA)]))
        wrong, naive = wrong + told, naive + careless
    assert wrong / sweeps <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / sweeps)
    assert naive / sweeps > 0.09
    assert sum(look.alpha for look in looks) <= ALPHA + 1e-12


def test_when_all_is_spent_nothing_is_claimed() -> None:
    table, looks = _noise(np.random.default_rng(1), [1.0] * 6, 4, 0.0), [Look((0, 1, 2), ALPHA)]
    table[1] += 100
    looks.append(next_look(looks, range(4), None))
    assert looks[-1].alpha == 0.0
    for apart in (frozenset[str](), frozenset({"a"})):
        d = differences(_values(table), ROWS, looks, apart)["a"]
        assert (d.low, d.high, d.p) == (None, None, None)
    assert next_look([Look((0,), 0.03), Look((0, 1), 0.03)], range(3), None).alpha == 0.0


def test_p_and_interval_agree_at_a_later_look() -> None:
    rng, seen = np.random.default_rng(2), set()
    for _ in range(200):
        table = _noise(rng, [1.0] * 6, 4, 0.0)
        table[1] += 3
        looks = _first(3)
        looks.append(next_look(looks, range(4), None))
        d = differences(_values(table), ROWS, looks)["a"]
        if d.odd:
            continue
        seen.add(d.p < ALPHA)
        assert (d.p < ALPHA) == (d.low > 0 or d.high < 0)
    assert seen == {True, False}


def test_what_looks_may_spend() -> None:
    first = next_look([], (0, 1, 2), None)
    assert first.alpha == pytest.approx(FIRST * ALPHA)
    second = next_look([first], (0, 1, 2, 3), None)
    assert second.alpha == pytest.approx((ALPHA - first.alpha) / 2)
    planned = [next_look([], range(3), 12)]
    for seeds in range(4, 13):
        planned.append(next_look(planned, range(seeds), 12))
    assert [look.alpha for look in planned] == pytest.approx([ALPHA / 4] + [ALPHA / 12] * 9)


def test_what_is_called_visible_is_found_in_four_of_five() -> None:
    rng, found, sweeps = np.random.default_rng(6), 0, 1000
    cells = tuple(itertools.product(range(6), range(4)))
    matrix = tuple(tuple(ROWS[v].get(n, 0.0) for n in NAMES) for v in NAMES[1:])
    *_, seen = statistics._drawn((cells,), matrix, (FIRST * ALPHA,))
    for _ in range(sweeps):
        table = _noise(rng, SPREADS["equal"], 4, 0.0)
        table[1] += seen[0]
        found += "a" in _claims(table, _first(4))
    assert found / sweeps == pytest.approx(statistics.POWER, abs=0.04)


def test_spreads_that_differ_much_are_told_and_taken_from_the_pair_alone() -> None:
    rng = np.random.default_rng(7)
    table = _noise(rng, [1.0, 1.0, 1.0, 1.0, 1.0, 30.0], 6, 0.0)
    d = differences(_values(table), ROWS, _first(6))["a"]
    assert d.odd
    test = stats.ttest_ind(table[1], table[0], equal_var=False)
    assert d.mean == pytest.approx(table[1].mean() - table[0].mean())
    assert d.p == pytest.approx(min(1.0, 5 * test.pvalue / FIRST))
    assert not differences(_values(_noise(rng, [1.0] * 6, 6, 0.0)), ROWS, _first(6))["a"].odd


def test_a_variant_set_apart_does_not_change_the_others() -> None:
    table = _noise(np.random.default_rng(8), [1.0] * 6, 4, 0.0)
    values = _values(table)
    values["e"][0] = -500.0
    with_it = differences(values, ROWS, _first(4), frozenset({"e"}))
    assert with_it["e"].odd
    assert with_it["e"].low < 0 < with_it["e"].high
    assert with_it["a"].high - with_it["a"].low < 10
    assert differences(values, ROWS, _first(4))["a"].odd, "without that its spread would be taken for that of all"


def test_rows_apart_have_their_part_of_the_false_claims() -> None:
    table = _noise(np.random.default_rng(10), [1.0] * 6, 4, 0.0)
    values, (look,) = _values(table), _first(4)
    found = differences(values, ROWS, [look], frozenset({"e"}))
    del values["e"]
    alone = differences(values, {v: ROWS[v] for v in "abcd"}, [look._replace(alpha=look.alpha * 4 / 5)])
    assert {v: found[v] for v in "abcd"} == alone


def test_seeds_that_the_look_has_not_seen_do_not_count() -> None:
    table = _noise(np.random.default_rng(11), [1.0] * 6, 4, 0.0)
    for apart in (frozenset[str](), frozenset({"e"})):
        before = differences(_values(table[:, :3]), ROWS, _first(3), apart)
        assert differences(_values(table + np.array([0, 0, 0, 99])), ROWS, _first(3), apart) == before


def test_one_seed_gives_no_interval_and_equal_runs_no_width() -> None:
    one = differences(_values(np.arange(6.0)[:, None]), ROWS, _first(1))["b"]
    assert (one.mean, one.low, one.p) == (2.0, None, None)
    same = differences(_values(np.full((6, 3), 0.3)), ROWS, _first(3))["b"]
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_variants_without_a_shared_seed_are_compared_by_themselves() -> None:
    rng = np.random.default_rng(9)
    values = {
        "reference": dict(enumerate(rng.standard_normal(3))),
        "a": dict(zip((3, 4, 5), [9.0, 9.1, 9.2], strict=True)),
    }
    d = differences(values, {"a": ROWS["a"]}, [Look((0, 1, 2, 3, 4, 5), ALPHA)])["a"]
    assert d.odd
    assert d.low > 0


def test_means_stay_where_values_can_be() -> None:
    plain = mean_interval([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, np.mean([1, 2, 4]), stats.sem([1, 2, 4]))
    assert (plain.low, plain.high) == pytest.approx((low, high))
    share = mean_interval([0.99, 0.999, 1.0], "logit")
    assert 0.99 < share.mean < 1
    assert 0 < share.low < share.high <= 1
    assert mean_interval([0.01, 0.02, 0.04], "log").low > 0
    assert mean_interval([99.0, 99.5, 100.0], "hundred").high <= 100
    assert mean_interval([1.0]).low is None
    with pytest.raises(UserError, match="has no mean"):
        mean_interval([1.0, float("nan")])


if __name__ == "__main__":
    for name, spreads in (SPREADS | BEYOND).items():
        for correlation in (0.0, 0.9):
            rng = np.random.default_rng(int(10 * correlation))
            found = [f"{100 * _wrong(rng, spreads, seeds, correlation, 3000):.1f}" for seeds in (3, 5, 10)]
            print(
                f"{name}, correlation {correlation}: {' | '.join(found)} % of sweeps with 3 | 5 | 10 seeds", flush=True
            )
    for seeds in (3, 4, 5):
        print(f"two spreads with {seeds} seeds: found in {100 * _right(np.random.default_rng(0), seeds, 3000):.1f} %")
