"""Laws of expectation-maximisation with unknown poses: it never descends on a fixed grid, and it finds the map."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated, truth_fsc

from hetmodels.families.classes import Classes
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.rotations import geodesic
from hetmodels.observation import Contrast, Outliers, Unknown
from inference.em import EM
from inference.engine import run
from inference.fitting import fit

FIXED = {"learn_spectrum": False, "learn_noise": False, "tolerance": -1.0, "mixture_tolerance": -1.0}


def low_passed(maps, shell):
    ball = Ball(maps.shape[-1])
    gain = (np.arange(ball.shells) <= shell).astype(np.float32)
    return np.asarray(ball.filter(jnp.asarray(maps), jnp.asarray(gain)))


def started(data, family, maps, pose, **choices):
    """A problem that starts from maps."""
    task = problem(data.particles, family, pose=pose.framed(data.particles.spacing), **choices)
    shared = task.shared(task.initial(jax.random.key(0)))
    occupancy = jnp.ones(len(maps))
    start = task.family.updated(shared, jnp.asarray(maps), task.family.spectra(shared), occupancy)
    return dataclasses.replace(task, start=start)


class Everything(Unknown):
    """The whole first grid, always: nothing set aside, nothing moved."""

    def refresh(self, key, templates, batch, table, copy):
        from hetmodels.imaging.poses import PosePrior
        from hetmodels.search import Search, find_poses

        rows, pixel = len(batch.weight), self.pixel
        cells = 72 * 5
        how = Search(0, 0, int(table.limit), pixel, pixel, mass=1.0, top=cells)
        eye, zero = jnp.broadcast_to(jnp.eye(3), (rows, 3, 3)), jnp.zeros((rows, 2))
        prior = PosePrior(eye, zero, np.inf, self.shift_sd * pixel)
        return find_poses(how, templates, batch, prior, eye, zero, copy)


@pytest.mark.parametrize(
    ("family", "states", "choices"),
    [(Homogeneous(), 1, {}), (Classes(classes=2), 2, {"contrast": Contrast(0.2), "outliers": Outliers()})],
)
def test_log_posterior_never_falls_on_a_fixed_grid(family, states, choices):
    data = simulated(n=12, size=10, pixel=16.0, snr=0.3, states=states, seed=1)
    pose = Everything(poses=360, top=1, shift_sd=1.0)
    maps = data.truth * 0.7 + 0.3 * data.truth.mean(0)
    engine = EM(iterations=20, anneal=0, solver_steps=2, batch_size=12, **FIXED)
    result = run(engine, started(data, family, maps, pose, **choices), key=jax.random.key(0))
    value = np.array([row["objective"] for row in result.trace])
    assert len(value) == 20
    assert np.all(np.diff(value[1:]) >= -1e-6 * np.abs(value[2:]))
    assert value[-1] > value[1]
    bands = {row["search_band"] for row in result.trace}
    assert bands == {4}


@pytest.mark.slow
def test_map_is_found_from_a_low_passed_reference():
    data = simulated(n=600, size=32, pixel=6.0, snr=0.3, seed=2)
    reference = low_passed(data.truth, 4)
    pose = Unknown(shift_range=3.0, shift_step=1.5, shift_sd=1.0)
    engine = EM(iterations=8)
    posterior = fit(
        Homogeneous(), data.particles, engine, key=jax.random.key(0), pose=pose, halves=True, start=reference
    )
    found = truth_fsc(np.asarray(posterior.shared["map"])[0, 0], data.truth[0])
    assert found[8] > 0.9
    halves = posterior.extra["fsc"]
    expected = np.sqrt(2 * np.maximum(halves, 0) / (1 + np.maximum(halves, 0)))
    assert np.all(np.abs(expected - found)[1:10] < 0.1)
    angle = np.asarray(geodesic(posterior.local["rotation"], data.particles.rotation))
    assert np.median(angle) < 0.12 and np.mean(angle < 0.26) > 0.8


def test_a_pass_of_search_lifts_the_map_above_its_reference():
    data = simulated(n=240, size=16, pixel=12.0, snr=0.5, seed=2)
    reference = low_passed(data.truth, 3)
    pose = Unknown(order=1, shift_range=2.0, shift_step=1.0, shift_sd=1.0, top=4)
    posterior = fit(
        Homogeneous(), data.particles, EM(iterations=3), key=jax.random.key(0), pose=pose, halves=True, start=reference
    )
    found = truth_fsc(np.asarray(posterior.shared["map"])[0, 0], data.truth[0])
    assert found[4] > 0.8
    assert posterior.local["rotation_top"].shape == (240, 4, 3, 3)
    weight = posterior.local["weight_top"]
    assert np.all(weight.sum(1) <= 1 + 1e-5) and np.all(np.diff(weight, axis=1) <= 0)
    np.testing.assert_array_equal(posterior.local["rotation"], posterior.local["rotation_top"][:, 0])
    angle = np.asarray(geodesic(posterior.local["rotation"], data.particles.rotation))
    assert np.median(angle) < 0.4
    assert {"search_order", "search_band", "discarded"} <= set(posterior.trace[0])


def test_search_needs_a_map_to_start_from():
    data = simulated(n=20, size=10, pixel=16.0)
    with pytest.raises(ValueError, match="--reference"):
        fit(Homogeneous(), data.particles, EM(iterations=1), key=jax.random.key(0), pose=Unknown())
