"""Penczek's bootstrap in closed form against drawn samples, and the bias that makes it a baseline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated
from test_covariance import noise_of, with_images

from hetmodels.families import Homogeneous
from hetmodels.local import component_lattice
from inference import covariance
from inference.bootstrap import BootstrapSums
from inference.covariance import LowBand, View

SIZE, LIMIT = 8, 3


@pytest.fixture(scope="module")
def setting():
    """Three hundred images of voxels that vary along one direction by plus or minus one; B_i and H_i of each image."""
    task = problem(simulated(n=300, size=SIZE, snr=0.3, seed=3).particles.with_holdout(0.0), Homogeneous())
    view, noise = View(task.observation, component_lattice(task.family), LIMIT), task.starting(jax.random.key(0))
    noise, batch, band, rng = noise["noise"], task.whole(), LowBand(SIZE, LIMIT), np.random.default_rng(0)
    table, count = view.lattice.table(jnp.zeros((1, *[SIZE] * 3))), len(band.place)
    ctf = np.asarray(covariance.residuals(view, table, noise, batch)[1], float)
    xi = np.einsum("mi,bij->bmj", np.asarray(view.points), np.asarray(batch.rotation)[:, :2])
    at = np.rint(xi * SIZE * view.observation.spacing).astype(int) + LIMIT + 1
    voxel = band.lookup[at[..., 2], at[..., 1], at[..., 0]]
    direction = 3 * rng.normal(size=2 * count) / np.sqrt(count)
    a = rng.choice([-1.0, 1.0], (len(voxel), 1)) * direction
    value = np.take_along_axis((a[:, :count] + 1j * a[:, count:]) / np.sqrt(2), np.abs(voxel) - 1, axis=1)
    d = ctf * np.where(voxel < 0, np.conj(value), value) * (voxel != 0) + noise_of(rng, voxel.shape)
    target, hits = np.zeros((len(voxel), 2 * count)), np.zeros((len(voxel), count))
    rows, sign = np.arange(len(voxel))[:, None], np.where(voxel < 0, np.conj(d), d) * (voxel != 0) * ctf * np.sqrt(2)
    np.add.at(target, (rows, np.abs(voxel) - 1), sign.real)
    np.add.at(target, (rows, count + np.abs(voxel) - 1), sign.imag)
    np.add.at(hits, (rows, np.abs(voxel) - 1), ctf**2 * (voxel != 0))
    sums = BootstrapSums.of(view, SIZE)
    sums.add(table, noise, with_images(batch, view, d, noise))
    return sums, target, np.tile(hits, 2), direction


def test_the_closed_form_is_the_covariance_of_drawn_samples(setting):
    """5,000 Poisson samples: the same up to first order in the numbers drawn and Monte-Carlo error."""
    sums, target, hits, _ = setting
    power, rng = np.full(LIMIT + 1, 10.0), np.random.default_rng(1)
    drawn = rng.poisson(1.0, (5000, len(target))).astype(float)
    maps = (drawn @ target) / (drawn @ hits + 0.1)
    sampled, closed = np.cov(maps.T), sums.covariance(power, corrected=False)
    often = np.flatnonzero(hits.sum(0) > np.median(hits.sum(0)))  # first order needs many images
    a, b = sampled[np.ix_(often, often)], closed[np.ix_(often, often)]
    assert np.linalg.norm(a - b) < 0.12 * np.linalg.norm(b)
    np.testing.assert_allclose(np.diag(a), np.diag(b), rtol=0.25)
    assert np.corrcoef(np.diag(a), np.diag(b))[0, 1] > 0.97


def test_it_is_biased_by_how_often_two_voxels_are_seen_together(setting):
    sums, _, hits, direction = setting
    closed = sums.covariance(np.full(LIMIT + 1, 1e6))
    one = np.outer(direction, direction)
    own = np.tile(sums.sums.weight, (2, 2)) / np.outer(hits.sum(0), hits.sum(0))
    often = np.flatnonzero(hits.sum(0) > np.median(hits.sum(0)))  # seen in few images, a voxel says nothing
    expected, found = (one * own)[np.ix_(often, often)], closed[np.ix_(often, often)]
    fit = (found * expected).sum() / (expected**2).sum()
    assert fit == pytest.approx(1, abs=0.05), fit  # Sigma n(xi, xi')/(n(xi) n(xi'))
    assert (own < 0.2).mean() > 0.9  # which is far from Sigma itself


def test_its_first_direction_is_that_of_the_motion(setting):
    sums, _, _, direction = setting
    found = np.asarray(sums.leading(np.full(LIMIT + 1, 10.0), 1), float).ravel()
    true = np.asarray(sums.sums.band.maps(direction[None]), float).ravel()
    assert np.abs(found @ true) > 0.6 * np.linalg.norm(found) * np.linalg.norm(true)
