import sys
from pathlib import Path

import numpy as np
import pytest

from hetmodels.analysis.oracle import true_state_posterior

sys.path.append(str(Path(__file__).parents[1] / "inference"))
from simulated import simulated  # noqa: E402


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_states_are_told_apart_as_well_as_their_distance_allows_whatever_the_grey_values(factor):
    """Calibration: a state given probability p is true in p of the cases; accuracy is the mean of the largest p."""
    data = simulated(n=500, size=16, snr=0.1, states=10, seed=2)
    particles = data.particles
    noise = np.full((1, particles.disc.shells), data.noise_sd**2) / particles.reference
    found = true_state_posterior(particles, lambda s: data.truth[s] / factor, 10, noise)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    own = found[np.arange(500), data.states]
    best = found.max(1)
    right = found.argmax(1) == data.states
    assert right.mean() == pytest.approx(best.mean(), abs=3 * np.sqrt(0.25 / 500))
    assert own.mean() == pytest.approx((found**2).sum(1).mean(), abs=3 * own.std() / np.sqrt(500))
    rank = np.corrcoef(found @ np.arange(10), data.states)[0, 1]
    assert rank > 0.8
