"""Latents of another program are scored by what they say of the images."""

import jax
import numpy as np
import pytest
from simulated import simulated

from hetmodels.analysis.compare import compare
from hetmodels.cli.rescoring import Imported, kernel_weights, rescored
from hetmodels.errors import DataError
from hetmodels.families import Homogeneous
from inference import EM, fit


def test_kernels_keep_the_number_of_particles_asked_for():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 2))
    for effective in (20.0, 200.0):
        weights = kernel_weights(z, z[3], effective)
        assert weights.sum() ** 2 / (weights**2).sum() == pytest.approx(effective, rel=1e-3)
        assert weights.argmax() == 3
        distance = np.linalg.norm(z - z[3], axis=1)
        assert (np.diff(weights[np.argsort(distance)]) <= 0).all()


@pytest.mark.slow
def test_latents_that_tell_the_states_score_above_one_map_and_noise_does_not():
    data = simulated(n=1200, size=16, snr=0.4, states=3)
    particles = data.particles.with_holdout(0.2)
    one = fit(Homogeneous(), particles, EM(), key=jax.random.key(0), holdout=0.2)
    rng = np.random.default_rng(0)
    told = data.states[:, None] + 0.1 * rng.normal(size=(1200, 1))
    good = rescored(told, particles, one, Imported("z.pkl", maps=3))
    bad = rescored(rng.normal(size=(1200, 2)), particles, one, Imported("noise.pkl", maps=3))
    found = compare({"one": one, "good": good, "bad": bad})
    assert found.rows[0].run == "good" and all(row.worse for row in found.rows[1:])
    assert abs(good.value("weights").sum() - 1) < 1e-5
    with pytest.raises(DataError, match="one row for each of the 1200"):
        rescored(told[:5], particles, one, Imported("z.pkl"))
