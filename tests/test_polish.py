"""Laws of the polish: poses never become less likely, leave the grid for the truth, and know how sure they are."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from test_search import PIXEL, batch_of, homogeneous, observation, pose_set, prior_of

from hetmodels.imaging.rotations import from_rotvec, geodesic, to_rotvec
from hetmodels.observation import Unknown
from hetmodels.polish import polished
from hetmodels.pose_local import searched_local

SIZE, ROWS = 24, 80


@pytest.mark.slow
def test_poses_leave_the_grid_for_the_truth_and_their_errors_are_as_said():
    values, images, rotation, shift = pose_set(ROWS, SIZE, 2.0, seed=9, sd=0.3)
    rng = np.random.default_rng(1)
    off = np.asarray(from_rotvec(0.1 * rng.normal(size=(ROWS, 3))))
    batch = dataclasses.replace(
        batch_of(images, np.ones(images.shape)),
        rotation=jnp.asarray(off @ rotation, jnp.float32),
        shift=jnp.asarray(shift + 0.4 * PIXEL * rng.normal(size=(ROWS, 2)), jnp.float32),
    )
    family, shared = homogeneous(values.astype(np.float32))
    found = polished(family, shared, observation(SIZE), jnp.ones((1, SIZE // 2)), batch, prior_of(ROWS), 8)
    assert float(found.gain.min()) >= 0
    before, after = (np.asarray(geodesic(r, rotation)) for r in (batch.rotation, found.rotation))
    assert np.median(after) < 0.5 * np.median(before)
    away = np.linalg.norm(np.asarray(found.shift) - shift, axis=1)
    assert np.median(away) < 0.5 * np.median(np.linalg.norm(np.asarray(batch.shift) - shift, axis=1))
    # the errors in units of their covariance: the mean of chi-squared with five degrees of freedom
    turn = to_rotvec(jnp.asarray(rotation, jnp.float32) @ jnp.swapaxes(found.rotation, 1, 2))
    error = np.concatenate([np.asarray(turn), shift - np.asarray(found.shift)], axis=1)
    chi2 = np.einsum("ni,nij,nj->n", error, np.linalg.inv(np.asarray(found.covariance, float)), error)
    assert 3.5 < np.median(chi2) < 6.5  # the median of that law is 4.35


@pytest.mark.slow
def test_a_narrow_prior_holds_poses():
    values, images, rotation, shift = pose_set(8, SIZE, 2.0, seed=9, sd=0.3)
    rng = np.random.default_rng(1)
    off = np.asarray(from_rotvec(0.05 * rng.normal(size=(8, 3)))) @ rotation
    batch = dataclasses.replace(
        batch_of(images, np.ones(images.shape)), rotation=jnp.asarray(off, jnp.float32),
        shift=jnp.asarray(shift, jnp.float32),
    )  # fmt: skip
    prior = dataclasses.replace(prior_of(8, 1e-3), rotation=batch.rotation, shift=batch.shift, rotation_sd=1e-4)
    family, shared = homogeneous(values.astype(np.float32))
    found = polished(family, shared, observation(SIZE), jnp.ones((1, SIZE // 2)), batch, prior, 8)
    assert float(geodesic(found.rotation, batch.rotation).max()) < 1e-3
    assert float(jnp.abs(found.shift - batch.shift).max()) < 1e-2


@pytest.mark.slow
def test_a_search_with_polish_says_better_poses():
    values, images, rotation, _ = pose_set(16, SIZE, 2.0, seed=9, sd=0.3)
    family, shared = homogeneous(values.astype(np.float32))
    noise = jnp.ones((1, SIZE // 2))
    angles = []
    for steps in (0, 6):
        pose = Unknown(polish=steps, shift_range=1.0, shift_step=1.0).framed(PIXEL)
        obs = dataclasses.replace(observation(SIZE), pose=pose)
        local = searched_local(family, shared, batch_of(images, np.ones(images.shape)), obs, noise, None)
        angles.append(np.asarray(geodesic(local.rotation, rotation)))
    assert np.median(angles[1]) < np.median(angles[0])
