import numpy as np
import pytest

from hetmodels.analysis.mixtures import TOLERANCE, mixture_weights


def overlapping(n=3000, seed=0):
    """Two states 1.5 standard deviations apart, 30 and 70 per cent."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n) + 1.5 * (rng.random(n) < 0.7)
    return -0.5 * (y[:, None] - np.array([0.0, 1.5])) ** 2


def test_weights_solve_the_stationarity_conditions():
    log_p = overlapping()
    found = mixture_weights(log_p)
    p = np.exp(log_p)
    gain = (p / (p @ found.weights)[:, None]).mean(0)
    np.testing.assert_allclose(gain, 1, atol=1e-5)
    assert found.gap < TOLERANCE and abs(found.weights[1] - 0.7) < 3 / np.sqrt(3000 * 0.3)


def test_a_component_given_twice_changes_nothing():
    log_p = overlapping()
    one, two = mixture_weights(log_p), mixture_weights(np.concatenate([log_p, log_p[:, 1:]], axis=1))
    assert two.weights[1:].sum() == pytest.approx(one.weights[1], abs=1e-4)
    assert two.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-6)


def test_the_certificate_is_reached_on_a_fine_grid_where_em_alone_crawls():
    rng = np.random.default_rng(1)
    y = np.where(rng.random(2000) < 0.5, -2.0, 2.0) + rng.normal(size=2000) * 1.0
    found = mixture_weights(-0.5 * (y[:, None] - np.linspace(-6, 6, 121)) ** 2)
    assert found.gap < TOLERANCE
    assert (found.weights > 1e-4).sum() < 20


def test_constants_of_a_row_and_counts():
    log_p = overlapping(400)
    shifted = log_p + np.random.default_rng(2).normal(size=(400, 1)) * 300
    np.testing.assert_allclose(mixture_weights(shifted).weights, mixture_weights(log_p).weights, atol=1e-6)
    counts = np.r_[np.ones(200), np.zeros(200)]
    np.testing.assert_allclose(mixture_weights(log_p, counts=counts).weights, mixture_weights(log_p[:200]).weights)
