import jax
import numpy as np
import pytest
from simulated import simulated

from hetmodels.errors import DataError, UsageError
from hetmodels.families import Homogeneous
from hetmodels.families.subspace import Subspace
from hetmodels.posterior import Posterior
from inference import Moments, fit
from inference.weighted import Reconstruction, coarse_latents


@pytest.fixture(scope="module")
def data():
    return simulated(n=300, snr=0.5).particles


@pytest.fixture(scope="module")
def run(data):
    return fit(Homogeneous(), data, Moments(batch_size=150), key=jax.random.key(0), holdout=0.2)


def test_weights_of_one_for_those_that_trained_give_the_runs_own_map(data, run):
    found = Reconstruction.of(run, data)((~run.local["held_out"]).astype(float))
    own = run.value("map")
    assert np.linalg.norm(found - own) < 0.01 * np.linalg.norm(own)


def test_a_weight_of_two_counts_as_two_images_and_a_common_factor_cancels_without_a_prior(data, run):
    solve = Reconstruction.of(run, data)
    weights = np.random.default_rng(0).uniform(0.2, 2, 300)
    one, double = solve(weights, free=True), solve(2 * weights, free=True)
    assert np.linalg.norm(one - double) < 0.01 * np.linalg.norm(one)
    assert np.linalg.norm(one - solve(np.ones(300), free=True)) > 0.02 * np.linalg.norm(one)


def test_other_particles_and_inferred_poses_are_refused(data, run):
    with pytest.raises(DataError, match="not the particles of the run"):
        Reconstruction.of(run, simulated(n=300, snr=0.5, seed=3).particles)
    moved = Posterior(run.family, run.shared, True, run.local, provenance=run.provenance | {"pose": "Refined()"})
    with pytest.raises(UsageError, match="needs the file's poses"):
        Reconstruction.of(moved, data)


def test_coarse_latents_do_not_see_fine_shells_and_all_shells_give_the_runs_own(data, run):
    maps = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32)
    one = run.first()
    shared = {
        "map": one["map"], "components": 0.3 * np.abs(one["map"]).max() * maps, "map_tau2": one["map_tau2"],
        "components_tau2": one["map_tau2"][None], "noise": one["noise"],
    }  # fmt: skip
    made = {name: np.asarray(value)[None, None] for name, value in shared.items()}
    model = Posterior(Subspace(1, frame=run.family.frame), made, True, run.local, provenance=run.provenance)
    extent = data.size * data.spacing
    full, some, few = (coarse_latents(model, data, extent / k).local for k in (7.01, 4.01, 1.01))
    again = coarse_latents(model, data, 1.0).local
    np.testing.assert_allclose(again["mean"], full["mean"], rtol=1e-4, atol=1e-5)
    spreads = [part["covariance"][:, 0, 0] for part in (full, some, few)]
    assert np.all(spreads[0] < spreads[1]) and np.all(spreads[1] < spreads[2]) and np.all(spreads[2] < 1)
    with pytest.raises(UsageError, match="no Fourier shell is as coarse"):
        coarse_latents(model, data, 2 * extent)
