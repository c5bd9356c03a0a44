"""Intervals hold their level for few concepts, whatever their sizes and effects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from support.coverage import CASES, CONCEPTS, PAGE, Case, coverage, one_concept_coverage, table

from masc_metrics.intervals import mean, product, unit_means


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nominal_95_percent_intervals_contain_the_truth_in_92_to_98_percent(case: Case) -> None:
    found = {concepts: coverage(case, concepts, simulations=1500) for concepts in CONCEPTS}
    assert all(0.92 <= share <= 0.98 for share in found.values()), found


def test_interval_of_one_concept_contains_its_own_mean() -> None:
    assert 0.92 <= one_concept_coverage(10, simulations=1500) <= 0.98


def test_page_has_a_table_of_the_simulation() -> None:
    header, rule, *rows = table(simulations=2).splitlines()
    text = PAGE.read_text(encoding="utf-8")
    assert f"{header}\n{rule}\n" in text
    for row in rows:
        assert row.rsplit("|", len(CONCEPTS) + 1)[0] in text


def test_interval_of_a_mean_is_students() -> None:
    values = np.array([0.1, 0.5, np.nan, 0.3, 0.9])
    estimate = mean(values)
    defined = values[~np.isnan(values)]
    expected = stats.ttest_1samp(defined, 0).confidence_interval(0.95)
    assert estimate.value == pytest.approx(defined.mean())
    assert estimate.interval == pytest.approx((expected.low, expected.high))


def test_interval_ends_at_the_limits_of_the_range_and_the_mean_stays() -> None:
    values = np.array([0.1, 0.9])
    free, limited = mean(values), mean(values, (-1, 1))
    assert free.interval == pytest.approx((0.5 - 12.7062 * 0.4, 0.5 + 12.7062 * 0.4), abs=1e-3)
    assert limited.interval == (-1, 1)
    assert (limited.value, limited.standard_error) == (free.value, free.standard_error)
    assert mean(np.array([0.7, 0.8, 0.9]), (-1, 1)).interval == pytest.approx((0.8 - 0.248414, 1.0), abs=1e-6)
    assert product(np.array([[0.1, 0.2], [0.9, 0.8]]), (-1, 1)).interval == (-1, 1)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.1 + 0.2, 0.3], [0.0, 0.0, np.nan]])
def test_equal_units_have_a_mean_but_no_interval(values: list[float]) -> None:
    estimate = mean(np.array(values), (0, 1))
    assert estimate.value == pytest.approx(np.nanmean(values))
    assert (estimate.standard_error, estimate.interval) == (None, None)


def test_mean_of_nothing_and_of_one_unit_has_no_interval() -> None:
    assert mean(np.array([])).value is None
    assert mean(np.array([np.nan])).interval is None
    assert mean(np.array([0.25, np.nan])) == mean(np.array([0.25]))
    assert mean(np.array([0.25])).interval is None


def test_product_of_two_means_has_an_interval_by_linearisation() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1500):
        units_U2 = generator.multivariate_normal([0.5, 0.3], [[0.01, -0.004], [-0.004, 0.01]], size=10)
        estimate = product(units_U2)
        assert estimate.value == pytest.approx(units_U2.mean(axis=0).prod())
        assert estimate.interval is not None
        hits += estimate.interval[0] <= 0.15 <= estimate.interval[1]
    assert 0.92 <= hits / 1500 <= 0.98


def test_units_are_concepts_and_with_one_concept_its_samples() -> None:
    values_NS = np.array([[0.1, np.nan], [0.3, np.nan], [0.8, 0.5]])
    units_US, over = unit_means(values_NS, np.array(["a", "a", "b"]))
    assert over == "concepts"
    assert units_US == pytest.approx(np.array([[0.2, np.nan], [0.8, 0.5]]), nan_ok=True)
    units_US, over = unit_means(values_NS[:2], np.array(["a", "a"]))
    assert over == "this concept only"
    assert units_US is values_NS[:2] or np.array_equal(units_US, values_NS[:2], equal_nan=True)
