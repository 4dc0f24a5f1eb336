"""Laws of expectation-maximisation with unknown poses: it never descends on a fixed grid, and it finds the map."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated, truth_fsc, uneven

from hetmodels.errors import UsageError
from hetmodels.families.classes import Classes
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.poses import step_of
from hetmodels.imaging.rotations import from_rotvec, geodesic
from hetmodels.imaging.symmetry import elements, symmetrised
from hetmodels.observation import Contrast, Known, Outliers, Refined, Unknown
from hetmodels.volumes.gaussians import Gaussians
from inference.em import EM
from inference.engine import run
from inference.fitting import fit
from inference.svi import SVI

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
    [
        pytest.param(Homogeneous(), 1, {}, marks=pytest.mark.slow),
        (Classes(classes=2), 2, {"contrast": Contrast(0.2), "outliers": Outliers()}),
    ],
)
def test_log_posterior_never_falls_on_a_fixed_grid(family, states, choices):
    data = simulated(n=12, size=10, pixel=16.0, snr=0.3, states=states, seed=1)
    pose = Everything(poses=360, top=1, shift_sd=1.0)
    maps = data.truth * 0.7 + 0.3 * data.truth.mean(0)
    engine = EM(iterations=10, anneal=0, solver_steps=2, batch_size=12, **FIXED)
    result = run(engine, started(data, family, maps, pose, **choices), key=jax.random.key(0))
    value = np.array([row["objective"] for row in result.trace])
    assert len(value) == 10
    assert np.all(np.diff(value[1:]) >= -1e-6 * np.abs(value[2:]))
    assert value[-1] > value[1]
    bands = {row["search_band"] for row in result.trace}
    assert bands == {4}


@pytest.mark.slow
def test_map_is_found_from_a_low_passed_reference():
    data = simulated(n=600, size=32, pixel=6.0, snr=0.3, seed=2, volumes=(uneven(32, 6.0),))
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
    assert np.median(angle) < 0.1 and np.mean(angle < 0.26) > 0.95


@pytest.mark.slow
def test_a_pass_of_search_lifts_the_map_above_its_reference():
    data = simulated(n=240, size=16, pixel=12.0, snr=0.5, seed=2, volumes=(uneven(16, 12.0),))
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


def test_search_needs_a_map_to_start_from_where_none_is_looked_for():
    data = simulated(n=20, size=10, pixel=16.0)
    with pytest.raises(ValueError, match="--reference"):
        fit(Homogeneous(), data.particles, SVI(iterations=1), key=jax.random.key(0), pose=Unknown())


@pytest.mark.slow
def test_refined_poses_come_nearer_to_the_truth_and_sharpen_the_map():
    data = simulated(n=300, size=16, pixel=12.0, snr=1.0, seed=4)
    rng = np.random.default_rng(0)
    true = np.asarray(data.particles.rotation)
    off = np.asarray(from_rotvec(0.15 * rng.normal(size=(300, 3)))) @ true
    shift = np.asarray(data.particles.shift) + 6.0 * rng.normal(size=(300, 2))
    table = dataclasses.replace(data.particles.table, rotation=off, shift=shift)
    particles = dataclasses.replace(data.particles, table=table)
    fits = [
        fit(Homogeneous(), particles, EM(iterations=4), key=jax.random.key(0), pose=pose)
        for pose in (Known(), Refined(rotation_sd=0.15, shift_sd=6.0))
    ]
    plain, fine = (truth_fsc(np.asarray(f.shared["map"])[0, 0], data.truth[0]) for f in fits)
    assert fine[5] > plain[5] + 0.1 and fine[5] > 0.95
    before, after = (np.asarray(geodesic(r, true)) for r in (off, fits[1].local["rotation"]))
    assert np.median(after) < 0.5 * np.median(before)
    assert fits[1].trace[0]["discarded"] == 0 and fits[1].trace[-1]["search_band"] > 0


def symmetric_beads(size, pixel, name):
    """A few beads and their copies under a group."""
    rng, group = np.random.default_rng(3), elements(name)
    centres = rng.uniform(-0.28, 0.28, (6, 3)) * size * pixel
    copies = np.concatenate([centres @ g for g in group])
    weights = np.tile(rng.uniform(0.5, 1.5, 6), len(group))
    return Gaussians(*(jnp.asarray(v, jnp.float32) for v in (copies, weights, np.full(len(copies), pixel))))


@pytest.mark.slow
def test_symmetry_is_worth_as_many_images_as_it_has_elements():
    molecule = symmetric_beads(16, 12.0, "C3")
    data = simulated(n=60, size=16, pixel=12.0, snr=0.05, seed=5, volumes=(molecule,))
    fits = [
        fit(Homogeneous(), data.particles, EM(iterations=4), key=jax.random.key(0), pose=Known(name), holdout=0.0)
        for name in ("C1", "C3")
    ]
    plain, symmetric = (np.asarray(f.shared["map"])[0, 0] for f in fits)
    assert truth_fsc(symmetric, data.truth[0])[3:7].mean() > truth_fsc(plain, data.truth[0])[3:7].mean() + 0.05
    line = np.arange(16) - 8
    ball = line[:, None, None] ** 2 + line[:, None] ** 2 + line**2 < 7**2
    uneven = [
        (np.asarray(symmetrised(jnp.asarray(m), 12.0, "C3")) - m)[ball].std() / m[ball].std()
        for m in (plain, symmetric)
    ]
    assert uneven[1] < 0.05 < 0.2 < uneven[0], uneven


@pytest.mark.slow
def test_a_search_looks_at_one_of_the_poses_that_symmetry_makes_alike():
    molecule = symmetric_beads(16, 12.0, "D2")
    data = simulated(n=60, size=16, pixel=12.0, snr=1.0, seed=6, volumes=(molecule,))
    pose = Unknown(order=1, shift_range=2.0, shift_step=1.0, shift_sd=1.0, symmetry="D2")
    posterior = fit(
        Homogeneous(), data.particles, EM(iterations=2), key=jax.random.key(0), pose=pose, holdout=0.0,
        start=low_passed(data.truth, 4),
    )  # fmt: skip
    found = posterior.local["rotation"][:, None]
    angle = np.asarray(geodesic(found @ elements("D2"), data.particles.rotation[:, None]))
    assert np.mean(angle.min(1) < 0.3) > 0.9
    turn = np.asarray(geodesic(found @ elements("D2"), jnp.eye(3)))
    assert np.mean(turn[:, 0] <= turn.min(1) + 2 * step_of(1)) > 0.95
    assert truth_fsc(np.asarray(posterior.shared["map"])[0, 0], data.truth[0])[5] > 0.9


def test_symmetry_is_refused_where_it_would_be_ignored():
    data = simulated(n=20, size=10, pixel=16.0)
    with pytest.raises(UsageError, match="svi cannot keep maps symmetric, and the symmetry is C3"):
        fit(Homogeneous(), data.particles, SVI(iterations=1), key=jax.random.key(0), pose=Known("C3"))
    with pytest.raises(UsageError, match="a group is one of"):
        Unknown(symmetry="C0")
