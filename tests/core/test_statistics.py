"""Bounds are where the papers put them, ordered, and cover the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm, t

from tasks.core import metrics
from tasks.core.statistics import (
    anytime_lower,
    benjamini_hochberg,
    bootstrap_upper,
    clustered_bootstrap,
    mcnemar_exact,
    mcnemar_loss,
    paired_bootstrap_upper,
    tango_upper,
    wilson,
)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int, int]:
    """(lost, gained, n) of a paired comparison."""
    n = draw(st.integers(1, 5000))
    lost = draw(st.integers(0, n))
    return lost, draw(st.integers(0, n - lost)), n


@pytest.mark.parametrize(
    ("lost", "gained", "n", "points"),
    [(200, 150, 10_000, 0.81), (60, 45, 3_080, 1.05), (0, 0, 450, 0.60), (0, 0, 5, 35.11)],
)
def test_tango_gives_the_worked_examples(lost: int, gained: int, n: int, points: float) -> None:
    assert round(100 * tango_upper(lost, gained, n), 2) == points


def test_tango_refuses_what_wald_would_pass() -> None:
    lost, gained, n, margin = 0, 0, 5, 0.02
    wald = (lost - gained) / n + 1.645 * math.sqrt((lost + gained) / n**2)

    assert wald <= margin
    assert tango_upper(lost, gained, n) > margin


@given(counts())
def test_tango_lies_above_the_observed_loss_and_at_most_at_one(c: tuple[int, int, int]) -> None:
    lost, gained, n = c

    assert (lost - gained) / n <= tango_upper(lost, gained, n) <= 1


@given(counts())
def test_tango_solves_its_own_score_equation(c: tuple[int, int, int]) -> None:
    """At the bound the score is -z, with the constrained estimate found by brute force."""
    lost, gained, n = c
    if not 0 < lost + gained < n:
        return
    bound = tango_upper(lost, gained, n)
    rates = np.linspace(max(0, -bound), (1 - bound) / 2, 200_001)[1:-1]
    same = 1 - 2 * rates - bound
    likelihood = (
        lost * np.log(rates + bound)
        + gained * np.log(rates)
        + (n - lost - gained) * np.log(np.maximum(same, 1e-300))
    )
    rate = rates[likelihood.argmax()]
    score = (lost - gained - n * bound) / math.sqrt(n * (2 * rate + bound - bound**2))

    assert score == pytest.approx(-norm.ppf(0.95), rel=5e-3, abs=5e-3)


@given(counts(), st.floats(0.6, 0.94))
def test_bounds_widen_with_confidence(c: tuple[int, int, int], confidence: float) -> None:
    lost, gained, n = c
    low, high = wilson(lost, n, confidence)
    wider_low, wider_high = wilson(lost, n, confidence + 0.05)

    assert wider_low <= low <= high <= wider_high
    assert tango_upper(lost, gained, n, confidence) <= tango_upper(
        lost, gained, n, confidence + 0.05
    )


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors(c: tuple[int, int]) -> None:
    successes, n = c
    low, high = wilson(successes, n)
    mirrored_low, mirrored_high = wilson(n - successes, n)

    assert 0 <= low <= successes / n <= high <= 1
    assert (low, high) == pytest.approx((1 - mirrored_high, 1 - mirrored_low))


def test_without_rows_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert tango_upper(0, 0, 0) == 1.0
    assert math.isnan(bootstrap_upper(np.zeros(0), np.zeros(0, dtype=np.int64)))


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.98])
def test_wilson_covers_the_truth_about_as_often_as_it_says(rate: float) -> None:
    """Exact coverage of the lower bound at n = 450, summed over all outcomes."""
    n = 450
    outcomes = np.arange(n + 1)
    covered = np.array([wilson(int(k), n)[0] <= rate for k in outcomes])

    assert binom.pmf(outcomes, n, rate)[covered].sum() == pytest.approx(0.95, abs=0.025)


def test_tango_covers_the_true_loss_about_as_often_as_it_says() -> None:
    n, lost, gained = 450, 0.02, 0.01
    drawn = np.random.default_rng(0).multinomial(n, [lost, gained, 1 - lost - gained], 2000)

    covered = np.mean([tango_upper(int(a), int(b), n) >= lost - gained for a, b, _ in drawn])

    assert covered == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (6, 0, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="n = 5"):
        tango_upper(*counts)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 95.0, math.nan])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_does_not_know_which_side_is_which(lost: int, gained: int) -> None:
    assert mcnemar_exact(lost, gained) == mcnemar_exact(gained, lost)
    assert 0 < mcnemar_exact(lost, gained) <= 1
    # The two one-sided tests share exactly the observed outcome.
    shared = binom.pmf(lost, lost + gained, 0.5)
    assert mcnemar_loss(lost, gained) + mcnemar_loss(gained, lost) == pytest.approx(1 + shared)


def test_bootstrap_of_a_mean_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    expected = values.mean() + norm.ppf(0.95) * values.std() / math.sqrt(len(values))

    bound = bootstrap_upper(values, np.zeros(400, dtype=np.int64), runs=4000)

    assert bound == pytest.approx(expected, abs=0.01)


def test_bootstrap_takes_values_and_functions_alike() -> None:
    values = np.random.default_rng(2).random(90)
    strata = np.arange(90) % 3

    by_value = bootstrap_upper(values, strata, runs=200, seed=7)
    by_function = bootstrap_upper(lambda i: float(values[i].mean()), strata, runs=200, seed=7)

    assert by_value == pytest.approx(by_function)


def test_bootstrap_is_seeded() -> None:
    values, strata = np.random.default_rng(3).random(60), np.zeros(60, dtype=np.int64)

    assert bootstrap_upper(values, strata, seed=1) == bootstrap_upper(values, strata, seed=1)
    assert bootstrap_upper(values, strata, seed=1) != bootstrap_upper(values, strata, seed=2)


def test_bootstrap_keeps_the_size_of_each_stratum() -> None:
    strata = np.repeat(np.arange(3), [5, 20, 75])
    seen: list[tuple[int, ...]] = []

    def remember(index: np.ndarray) -> float:
        seen.append(tuple(np.bincount(strata[index], minlength=3)))
        return 0.0

    bootstrap_upper(remember, strata, runs=50)

    assert set(seen) == {(5, 20, 75)}


def test_bootstrap_in_blocks_gives_every_run_its_own_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.core.statistics.BLOCK", 120)  # two runs of 60 rows at a time
    values, strata = np.random.default_rng(4).random(60), np.zeros(60, dtype=np.int64)
    means: list[float] = []

    def mean(index: np.ndarray) -> float:
        means.append(float(values[index].mean()))
        return means[-1]

    bootstrap_upper(mean, strata, runs=31)

    assert len(means) == len(set(means)) == 31


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_a_pair_that_never_differs_loses_nothing(seed: int) -> None:
    values = np.random.default_rng(seed).random(30)

    assert paired_bootstrap_upper(values, values, np.zeros(30, dtype=np.int64), runs=100) == 0


def test_pairing_tightens_the_bound_of_a_difference() -> None:
    generator = np.random.default_rng(5)
    hard = generator.random(300)
    first, second = hard + 0.02 * generator.random(300), hard + 0.02 * generator.random(300)
    strata = np.zeros(300, dtype=np.int64)

    paired = paired_bootstrap_upper(first, second, strata)
    apart = bootstrap_upper(first, strata) + bootstrap_upper(-second, strata)

    assert paired < 0.01
    assert apart > 3 * paired


def test_macro_f1_loss_is_bounded_above_the_observed_loss() -> None:
    generator = np.random.default_rng(6)
    labels = np.arange(300) % 5
    teacher = np.where(generator.random(300) < 0.02, (labels + 1) % 5, labels)
    student = np.where(generator.random(300) < 0.06, (labels + 1) % 5, labels)
    observed = metrics.macro_f1(teacher, labels, 5) - metrics.macro_f1(student, labels, 5)

    bound = paired_bootstrap_upper(
        lambda i: metrics.macro_f1(teacher[i], labels[i], 5),
        lambda i: metrics.macro_f1(student[i], labels[i], 5),
        labels,
    )

    assert observed < bound < observed + 0.06


def test_a_statistic_that_is_nan_once_gives_nan() -> None:
    calls = iter([math.nan] + [0.0] * 99)

    assert math.isnan(
        bootstrap_upper(lambda _: next(calls), np.zeros(10, dtype=np.int64), runs=100)
    )


def test_values_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        bootstrap_upper(np.zeros(4), np.zeros(5, dtype=np.int64))


def slow_clustered(differences: np.ndarray, runs: int, seed: int) -> tuple[float, float]:
    """Two-level resampling as it is told: draw seeds, draw rows once for all of them, average."""
    seeds, rows = differences.shape
    spread = math.sqrt(seeds / (seeds - 1)) * t.ppf(0.95, seeds - 1) / norm.ppf(0.95)
    grand, generator, found = differences.mean(), np.random.default_rng(seed), []
    for _ in range(runs):
        drawn, total = generator.integers(0, rows, rows), 0.0
        for one in generator.integers(0, seeds, seeds):
            total += differences[one][drawn].mean() + (spread - 1) * (
                differences[one].mean() - grand
            )
        found.append(total / seeds)
    low, high = np.quantile(found, [0.05, 0.95])
    return float(low), float(high)


def test_clustered_bootstrap_agrees_with_a_slow_reference() -> None:
    generator = np.random.default_rng(8)
    per_seed, per_row = generator.normal(0.02, 0.02, (4, 1)), generator.normal(0, 0.2, (1, 150))
    differences = per_seed + per_row + generator.normal(0, 0.1, (4, 150))

    found = clustered_bootstrap(differences, runs=4000)

    assert found == pytest.approx(slow_clustered(differences, 4000, seed=1), abs=0.003)


def test_clustered_bootstrap_of_seeds_that_agree_is_the_bootstrap_of_rows() -> None:
    values = np.random.default_rng(9).normal(0.1, 1.0, 300)
    strata = np.zeros(300, dtype=np.int64)

    low, high = clustered_bootstrap(np.tile(values, (5, 1)), runs=4000)

    assert high == pytest.approx(bootstrap_upper(values, strata, runs=4000), abs=0.01)
    assert low == pytest.approx(-bootstrap_upper(-values, strata, runs=4000), abs=0.01)


def test_clustered_bootstrap_of_rows_that_agree_is_students_interval_of_seeds() -> None:
    means = np.array([0.01, 0.03, 0.02, 0.05, 0.04])
    half = t.ppf(0.95, 4) * means.std(ddof=1) / math.sqrt(5)

    low, high = clustered_bootstrap(np.tile(means[:, None], (1, 50)))

    assert (low, high) == pytest.approx((0.03 - half, 0.03 + half), abs=0.002)


@pytest.mark.parametrize(
    ("between_seeds", "between_rows", "covers"), [(0.02, 0.05, 0.95), (0.0, 0.1, 0.95)]
)
def test_clustered_bootstrap_covers_the_truth_as_often_as_it_says(
    between_seeds: float, between_rows: float, covers: float
) -> None:
    generator = np.random.default_rng(10)
    covered = [
        clustered_bootstrap(
            generator.normal(0, between_seeds, (5, 1))
            + generator.normal(0, between_rows, (1, 100))
            + generator.normal(0, 0.01, (5, 100)),
            runs=400,
            seed=repetition,
        )[0]
        <= 0
        for repetition in range(500)
    ]

    assert np.mean(covered) == pytest.approx(covers, abs=0.025)


def test_clustered_bootstrap_in_blocks_draws_as_it_does_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    differences = np.random.default_rng(11).normal(0.0, 1.0, (3, 60))
    at_once = clustered_bootstrap(differences, runs=2000)
    monkeypatch.setattr("tasks.core.statistics.BLOCK", 600)  # ten runs of 60 rows at a time

    assert clustered_bootstrap(differences, runs=2000) == pytest.approx(at_once, abs=0.05)
    assert clustered_bootstrap(differences, seed=1) != clustered_bootstrap(differences, seed=2)


@pytest.mark.parametrize("shape", [(1, 50), (5, 0), (50,)])
def test_clustered_bootstrap_needs_two_seeds_and_a_row(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 seeds or more"):
        clustered_bootstrap(np.zeros(shape))


def test_benjamini_hochberg_gives_the_values_of_the_textbook() -> None:
    p = [0.005, 0.009, 0.05, 0.02, 1.0]

    assert benjamini_hochberg(p) == pytest.approx([0.0225, 0.0225, 0.0625, 0.1 / 3, 1.0])


@given(st.lists(st.floats(0, 1), max_size=30))
def test_adjusted_values_are_never_below_the_raw_and_keep_their_order(p: list[float]) -> None:
    q = benjamini_hochberg(p)

    assert all(raw <= adjusted + 1e-12 <= 1 + 1e-9 for raw, adjusted in zip(p, q, strict=True))
    ordered = [q[i] for i in np.argsort(p, kind="stable")]
    assert ordered == sorted(ordered)


def test_a_p_value_that_is_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="lie in"):
        benjamini_hochberg([0.1, math.nan])


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.75, 0.98])
def test_an_anytime_bound_is_crossed_by_few_however_often_one_looks(rate: float) -> None:
    """The bound after all rows is the highest of any look, so it is asked once; Wilson's, looked at
    after every row, is wrong far more often than it says."""
    drawn = np.random.default_rng(0).random((400, 400)) < rate

    crossed = np.mean([anytime_lower(row) > rate for row in drawn])
    peeked = np.mean(
        [
            any(wilson(int(k), n)[0] > rate for n, k in enumerate(row.cumsum(), start=1))
            for row in drawn[:100]
        ]
    )

    assert crossed <= 0.05
    assert peeked > 0.1


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_an_anytime_bound_nears_the_mean_the_sooner_the_less_values_differ(spread: float) -> None:
    values = 0.5 + spread * np.tile([1.0, -1.0], 500)
    bound = anytime_lower(values)

    assert 0.5 - (0.02 if spread == 0 else 0.06) < bound < 0.5
    assert bound > anytime_lower(np.tile([1.0, 0.0], 500))


@given(st.lists(st.floats(0, 1), max_size=60), st.lists(st.floats(0, 1), max_size=20))
def test_an_anytime_bound_never_falls_as_rows_come_in(
    values: list[float], more: list[float]
) -> None:
    before, after = np.array(values), np.array(values + more)

    assert 0 <= anytime_lower(before) <= anytime_lower(after) < 1
    ones = np.ones(40)
    assert 0.8 < anytime_lower(ones) == anytime_lower(np.append(ones, np.zeros(400)))


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_values_that_cannot_be_bet_on_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="lie in"):
        anytime_lower(np.array([0.5, value]))
