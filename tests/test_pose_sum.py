"""Laws of the sum over a few poses: the float64 sum itself, the search's own evidence, the mean of the gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_search import PIXEL, batch_of, dense_slices, observation, prior_of

from hetmodels.families.protocol import Frame
from hetmodels.families.subspace import Subspace
from hetmodels.imaging.grids import phase_ramp
from hetmodels.imaging.poses import shift_lattice
from hetmodels.imaging.rotations import uniform
from hetmodels.pose_sum import summed_ratio
from hetmodels.scoring import Templates
from hetmodels.search import Search, find_poses
from hetmodels.selection import PoseTable

ROWS = 2


def gaussian_brute_force(y, ctf, variance, slices, phases, log_prior, prior):
    """Sum over rotations and shifts of a dense Gaussian density ratio: y ~ N(x_0, noise + X prior X^T), float64."""
    scale = np.sqrt(2 / variance)
    stacked = lambda v: np.concatenate([(v * scale).real, (v * scale).imag])  # noqa: E731 - unit noise, real pixels
    total = np.empty((len(slices), len(phases)))
    for r, t in np.ndindex(total.shape):
        x = np.stack([stacked(ctf * phases[t] * slices[r, :, k]) for k in range(slices.shape[-1])], axis=1)
        d = stacked(y) - x[:, 0]
        covariance = np.eye(len(d)) + x[:, 1:] @ prior @ x[:, 1:].T
        nats = -0.5 * d @ np.linalg.solve(covariance, d) - 0.5 * np.linalg.slogdet(covariance)[1]
        total[r, t] = nats + 0.5 * (stacked(y) ** 2).sum() + log_prior[r, t]
    return total


@pytest.fixture(scope="module")
def everything():
    """A first grid over rotations and shifts, all of it as candidates, of a subspace in float64."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        obs, maps = observation(8), rng.normal(size=(3, 8, 8, 8))
        family = Subspace(dims=2, frame=Frame(8, PIXEL, (1.0,) * 4))
        shared = {"map": jnp.asarray(maps[0]), "components": jnp.asarray(maps[1:])}
        m = obs.disc.pixels
        images = 2 * (rng.normal(size=(ROWS, m)) + 1j * rng.normal(size=(ROWS, m)))
        batch = batch_of(images, rng.uniform(-1, 1, (ROWS, m)), jnp.float64)
        noise = jnp.asarray(rng.uniform(2, 4, (1, obs.disc.shells)))
        turn = jnp.broadcast_to(uniform(jax.random.key(1), 1).astype(jnp.float64), (ROWS, 3, 3))
        how = Search(0, 0, 3, 1.5 * PIXEL, PIXEL, mass=1.0, top=72 * 9)
        prior = prior_of(ROWS, dtype=jnp.float64)
        poses = find_poses(how, Templates.of(family, shared, obs, noise), batch, prior, turn, jnp.zeros((ROWS, 2)))
        return family, shared, obs, noise, batch, poses, how.first_grid(), turn


def posed(batch, poses, count):
    parts = (getattr(poses, name)[:, :count] for name in ("rotation", "shift", "weight", "log_prior"))
    table = PoseTable(*parts, *[None] * 6)
    return dataclasses.replace(batch, poses=table.support(np.arange(len(batch.weight))))


def test_a_gaussian_latent_is_integrated_at_every_pose(everything):
    """The search's evidence is the brute-force float64 sum over poses of dense Gaussian densities."""
    family, shared, obs, noise, batch, poses, grid, turn = everything
    with jax.enable_x64(True):
        rotations = grid.rotation(jnp.arange(grid.cells)[None], turn[:1])[0]
        shifts = shift_lattice(15.0, PIXEL)
        points = obs.disc.grid(PIXEL).points.astype(jnp.float64)
        phases = np.asarray(phase_ramp(points, jnp.asarray(shifts)))
        slices = dense_slices(family, shared, rotations, points)
    area = np.log(PIXEL**2 / (2 * np.pi * 64)) - 0.5 * (shifts**2).sum(1) / 64
    log_prior = grid.log_volume + np.tile(area, (len(rotations), 1))
    variance = np.asarray(noise)[0][obs.disc.shell]
    for i in range(ROWS):
        y, ctf = np.asarray(batch.images[i]), np.asarray(batch.ctf[i])
        joint = gaussian_brute_force(y, ctf, variance, slices, phases, log_prior, np.eye(2)).ravel()
        total = np.logaddexp.reduce(joint)
        assert poses.log_evidence[i] == pytest.approx(total, rel=1e-9, abs=1e-9)
        np.testing.assert_allclose(poses.weight[i], np.sort(np.exp(joint - total))[::-1], atol=1e-9)


def test_the_sum_over_all_poses_is_the_evidence_and_over_some_their_share_of_it(everything):
    family, shared, obs, noise, batch, poses, *_ = everything
    with jax.enable_x64(True):
        whole = summed_ratio(family, shared, posed(batch, poses, None), obs, noise, None)
        part = summed_ratio(family, shared, posed(batch, poses, 5), obs, noise, None)
    np.testing.assert_allclose(whole, poses.log_evidence, rtol=1e-9)
    np.testing.assert_allclose(part - whole, np.log(poses.weight[:, :5].sum(1)), atol=1e-9)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_sum(everything):
    """Autodiff against finite differences along random directions of the maps, float64."""
    family, shared, obs, noise, batch, poses, *_ = everything
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        some = posed(batch, poses, 5)

        @jax.jit
        def value(maps):
            known = {"map": maps[0], "components": maps[1:]}
            return summed_ratio(family, known, some, obs, noise, None).sum()

        at = family.components(shared)
        slope = jax.grad(value)(at)
        for _ in range(3):
            way = jnp.asarray(rng.normal(size=at.shape))
            step = 1e-4
            finite = (value(at + step * way) - value(at - step * way)) / (2 * step)
            assert float((slope * way).sum()) == pytest.approx(float(finite), rel=1e-6)
