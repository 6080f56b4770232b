"""The adaptive entropy coefficient, step by step."""

import math

import pytest

from gruppo.algorithm.entropy import EntropyControl, applied_coef, next_entropy_control

LIMITS = {"target": 0.2, "delta": 0.1, "min": 0.0, "max": 0.25}


def test_nothing_is_applied_before_the_first_measurement():
    assert applied_coef(EntropyControl(0.5), target=100.0) == 0.0
    assert EntropyControl(0.5).last_entropy == math.inf


def test_a_static_coefficient_always_applies():
    assert applied_coef(EntropyControl(0.5), target=None) == 0.5


def test_low_entropy_raises_and_applies():
    control = next_entropy_control(EntropyControl(0.1), 20.0, 100.0, **LIMITS)  # exactly at the target
    assert control == EntropyControl(coef=0.2, last_entropy=0.2)
    assert applied_coef(control, 0.2) == 0.2


def test_high_entropy_lowers_and_lets_go():
    control = next_entropy_control(EntropyControl(0.25), 30.0, 100.0, **LIMITS)
    assert control.coef == pytest.approx(0.15)
    assert control.last_entropy == 0.3
    assert applied_coef(control, 0.2) == 0.0


def test_the_coefficient_stays_within_its_limits():
    assert next_entropy_control(EntropyControl(0.2), 0.0, 10.0, **LIMITS).coef == 0.25
    assert next_entropy_control(EntropyControl(0.05), 99.0, 10.0, **LIMITS).coef == 0.0


def test_a_step_without_tokens_measures_zero():
    assert next_entropy_control(EntropyControl(0.1), 0.0, 0.0, **LIMITS).last_entropy == 0.0
