"""Bootstrap intervals: by hand, against theory, paired, stratified, and what is refused."""

import numpy as np
import pytest

from vit_sae_plugin.evaluation import bootstrap
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean


def test_two_units_have_means_that_can_be_counted():
    # drawn pairs: (0, 0), (0, 1), (1, 0), (1, 1), so a quarter of means is 0 and a quarter is 1
    assert bootstrap_mean([0.0, 1.0], confidence=0.9) == (0.5, 0.0, 1.0)
    assert bootstrap_mean([0.0, 1.0], confidence=0.4) == (0.5, 0.5, 0.5)
    assert bootstrap_mean([3.0]) == (3, 3, 3)


def test_interval_is_that_of_theory_for_many_units():
    values = np.random.default_rng(0).normal(2, 3, 1000)
    mean, low, high = bootstrap_mean(values, n_resamples=5000)
    error = values.std() / np.sqrt(1000)
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)


def test_columns_are_resampled_alike_so_a_constant_difference_has_no_width():
    first = np.random.default_rng(1).normal(size=50)
    both = bootstrap_mean(np.stack([first, first + 0.25, 2 * first], axis=1))
    np.testing.assert_allclose(both.low[1] - both.low[0], 0.25)
    np.testing.assert_allclose(both.high[2], 2 * both.high[0])
    paired = bootstrap_mean((first + 0.25) - first)
    np.testing.assert_allclose(paired, 0.25)
    assert both.mean.shape == (3,)
    assert bootstrap_mean(np.ones((5, 2, 3))).low.shape == (2, 3)


def test_strata_weigh_the_same_and_keep_their_size():
    values, strata = [0.0] * 63 + [1.0] * 8, ["many"] * 63 + ["few"] * 8
    np.testing.assert_allclose(bootstrap_mean(values, strata=strata), 0.5)
    mean, low, high = bootstrap_mean(values)
    assert mean == pytest.approx(8 / 71)
    assert low < mean < high
    shuffled = np.random.default_rng(0).permutation(71)
    kinds = [strata[unit] for unit in shuffled]
    np.testing.assert_allclose(bootstrap_mean(np.array(values)[shuffled], strata=kinds), 0.5)


def test_same_seed_same_interval_in_any_number_of_parts(monkeypatch):
    values = np.random.default_rng(2).normal(size=(40, 2))
    whole = bootstrap_mean(values, seed=3)
    monkeypatch.setattr(bootstrap, "_MAX_COUNTS", 40 * 7)
    np.testing.assert_array_equal(bootstrap_mean(values, seed=3).low, whole.low)
    assert (bootstrap_mean(values, seed=4).low != whole.low).all()


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([], {}, "at least one unit"),
        ([1.0, np.nan], {}, "NaN or infinity"),
        ([1.0, 2.0], {"confidence": 95}, "confidence is 95; want a share"),
        ([1.0, 2.0], {"n_resamples": 0}, "n_resamples is 0; want at least 1"),
        ([1.0, 2.0], {"strata": ["a"]}, "strata has 1 entries; want one for each of the 2"),
    ],
)
def test_what_has_no_interval_is_refused(values, settings, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values, **settings)
