"""The learned density of viewing directions: a density, the mode under its prior, and worth its while where uneven."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_search import batch_of, homogeneous, observation, pose_set, prior_of

from hetmodels.imaging.poses import Sphere, direction_cells, direction_density
from hetmodels.imaging.rotations import from_rotvec, uniform
from hetmodels.imaging.symmetry import elements
from hetmodels.observation import Unknown
from hetmodels.scoring import Templates
from hetmodels.selection import PoseTable


def test_the_density_is_one_and_its_prior_mass_adds_up():
    rotation = uniform(jax.random.key(0), 600)[:, None]
    tilted = rotation[np.asarray(rotation)[:, 0, 2, 2] > 0.5]
    found = direction_density(tilted, jnp.ones(tilted.shape[:2]), "C1", 1.0)
    assert np.exp(found).mean() == pytest.approx(1, rel=1e-5)
    grid = Sphere.of(2)
    every = grid.rotation(jnp.arange(grid.cells)[None], jnp.eye(3)[None])
    prior = dataclasses.replace(prior_of(1), directions=found[None])
    mass = np.exp(np.asarray(prior.log_rotation(every, grid))[0])
    assert mass.sum() == pytest.approx(1, rel=0.03)  # cells of the grid and of the density do not share edges
    assert mass[np.asarray(every)[0, :, 2, 2] > 0.6].sum() > 0.5  # it would be 0.2 if it were even
    counts = np.bincount(np.asarray(direction_cells(tilted[:, 0], 48)), minlength=48) + 1.0
    np.testing.assert_allclose(np.exp(found), counts / counts.mean(), rtol=1e-5)


def test_alike_poses_count_for_the_same_directions():
    rotation = uniform(jax.random.key(1), 50)[:, None]
    one = direction_density(rotation, jnp.ones((50, 1)), "C3", 1.0)
    turned = jnp.matmul(rotation, jnp.asarray(elements("C3")[1], jnp.float32))
    np.testing.assert_allclose(direction_density(turned, jnp.ones((50, 1)), "C3", 1.0), one, atol=1e-4)


@pytest.mark.slow
def test_directions_are_learned_and_make_images_likelier():
    """Views near one axis: the table learns it from the search, and the next search has the more evidence."""
    rng = np.random.default_rng(0)
    small = from_rotvec(jnp.asarray(0.2 * rng.normal(size=(120, 3)), jnp.float32))
    spin = from_rotvec(jnp.asarray(np.outer(rng.uniform(0, 2 * np.pi, 120), [0, 0, 1]), jnp.float32))
    rotation = np.asarray(jnp.matmul(jnp.matmul(spin, small), uniform(jax.random.key(2), 1)[0]))
    values, images, *_ = pose_set(120, 16, 0.2, seed=3, sd=0.3, rotation=rotation)
    family, shared = homogeneous(values.astype(np.float32))
    pose = Unknown(order=1, shift_range=1.0, shift_step=1.0, direction_counts=1.0, perturb=False).framed(10.0)
    obs = dataclasses.replace(observation(16), pose=pose)
    templates = Templates.of(family, shared, obs, jnp.ones((1, 8)))
    batch = dataclasses.replace(batch_of(images, np.ones(images.shape)), index=jnp.arange(120))

    class Task:
        particles, observation = range(120), obs

    table, evidence = pose.table(Task), []
    assert np.all(table.directions == 0)
    for _ in range(2):
        found = pose.refresh(None, templates, batch, table, None)
        evidence.append(float(found.log_evidence.mean()))
        table.fill(np.arange(120), found)
        table = table.learned(np.arange(120), "C1", pose.direction_counts)
    mine = np.exp(table.directions)[np.asarray(direction_cells(jnp.asarray(rotation, jnp.float32), 48))]
    assert mine.mean() > 5
    assert evidence[1] > evidence[0] + 0.3
    assert isinstance(table, PoseTable)
