"""Thresholds, worked by hand."""

import math

import numpy as np
import pytest

from vit_sae_plugin.concepts.calibration import threshold_against_null, threshold_for_precision


def test_a_lower_bound_reaches_the_stated_precision():
    clearness = np.arange(15, 0, -1.0)
    # all right: n ÷ (n + z²) with z² = 1.642 at 90 % reaches 0.9 at n = 15, but not at 14
    assert threshold_for_precision(clearness, np.ones(15, bool), 0.9).clearness == 1
    assert threshold_for_precision(clearness[:14], np.ones(14, bool), 0.9).clearness == math.inf
    # at 80 % it is 0.708, which takes 7
    assert threshold_for_precision(clearness[:7], np.ones(7, bool), 0.9, 0.8).clearness == 9
    assert threshold_for_precision(clearness[:6], np.ones(6, bool), 0.9, 0.8).clearness == math.inf


def test_the_threshold_falls_before_where_names_go_wrong():
    clearness = np.arange(30, 0, -1.0)
    right = np.arange(30) < 12  # the twelve clearest
    threshold = threshold_for_precision(clearness, right, 0.9, 0.8)
    assert threshold.clearness == 19  # the twelfth; 12 of 13 have the bound 0.837
    assert threshold.n_calibration == 30
    assert threshold_for_precision(clearness, right, 0.8, 0.8).clearness == 18  # of 14: 0.761


def test_equal_and_unclear_latents():
    right = np.array([True] * 20 + [False] * 2)
    assert threshold_for_precision(np.full(22, 2.0), right, 0.9).clearness == math.inf
    assert threshold_for_precision(np.zeros(20), np.ones(20, bool), 0.9).clearness == math.inf


def test_a_share_of_random_directions_passes():
    null = np.arange(99.0)
    threshold = threshold_against_null(null, 0.05).clearness
    assert (null >= threshold).sum() == 4  # ⌊0.05 · 100⌋ − 1, the new one being among them
    assert threshold_against_null(np.zeros(99), 0.05).clearness > 0
    with pytest.raises(ValueError, match="there are 99 random directions; want at least 999"):
        threshold_against_null(null, 0.001)


def test_false_names_come_at_the_stated_rate():
    generator = np.random.default_rng(0)
    null, fresh = generator.exponential(size=(2, 20_000))
    assert (fresh >= threshold_against_null(null, 0.01).clearness).mean() == pytest.approx(
        0.01, abs=0.002
    )


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: threshold_for_precision([1.0], [True], 1.0), "precision is 1.0"),
        (lambda: threshold_for_precision([1.0], [True], 0.9, 0), "confidence is 0"),
        (lambda: threshold_for_precision([], []), "one truth for each of some latents"),
        (lambda: threshold_for_precision([np.nan], [True]), "holds NaN"),
        (lambda: threshold_against_null([1.0], 0), "false_naming_rate is 0"),
    ],
)
def test_settings_out_of_range_are_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()
