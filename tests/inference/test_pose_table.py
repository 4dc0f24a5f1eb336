"""Engines that climb by gradients, with unknown poses: the sum over candidates lifts a map as EM does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import simulated, truth_fsc, uneven
from test_em_poses import low_passed

from hetmodels.families.homogeneous import Homogeneous
from hetmodels.families.subspace import Subspace
from hetmodels.imaging.rotations import geodesic
from hetmodels.observation import Unknown
from hetmodels.volumes.gaussians import Gaussians
from inference.em import EM
from inference.fitting import fit
from inference.map import MAP
from inference.svi import SVI

POSE = Unknown(order=1, shift_range=2.0, shift_step=1.0, shift_sd=1.0, top=4, poses=16)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [SVI(iterations=16, batch_size=60), MAP(iterations=40)], ids=["svi", "map"])
def test_maps_rise_above_their_reference_under_gradients(engine):
    data = simulated(n=240, size=16, pixel=12.0, snr=0.5, seed=2, volumes=(uneven(16, 12.0),))
    reference = low_passed(data.truth, 3)
    posterior = fit(Homogeneous(), data.particles, engine, key=jax.random.key(0), pose=POSE, start=reference)
    found = truth_fsc(np.asarray(posterior.shared_point()["map"]), data.truth[0])
    assert found[4] > 0.7 and found[5] > 0.5  # the reference has nothing there
    assert posterior.trace[-1]["objective"] > posterior.trace[0]["objective"] + 5
    angle = np.asarray(geodesic(posterior.local["rotation"], data.particles.rotation))
    assert np.median(angle) < 0.45


@pytest.mark.slow
def test_a_subspace_is_found_with_its_poses_unknown():
    """Two states as one latent coordinate, from a low-passed mean map: the coordinate tells the states apart."""
    first = uneven(16, 12.0)
    centres = np.array(first.centres)
    centres[:12] += np.array([0.0, 0.0, 40.0])
    second = Gaussians(jnp.asarray(centres, jnp.float32), first.weights, first.widths)
    data = simulated(n=400, size=16, pixel=12.0, snr=2.0, states=2, seed=2, volumes=(first, second))
    reference = low_passed(data.truth.mean(0), 4)
    posterior = fit(Subspace(dims=1), data.particles, EM(iterations=8), key=jax.random.key(0), pose=POSE,
                    start=reference)  # fmt: skip
    z = posterior.local["mean"][:, 0]
    assert abs(np.corrcoef(z, data.states)[0, 1]) > 0.7
