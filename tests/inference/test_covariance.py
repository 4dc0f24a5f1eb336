"""Covariance by least squares on second moments: closed forms, consistency, noise of mean zero."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from simulated import problem, simulated

from hetmodels.data.batch import Batch
from hetmodels.families import Homogeneous
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.grids import phase_ramp
from hetmodels.local import component_lattice
from inference import covariance
from inference.covariance import ColumnSums, LowBand, ProjectedSums, View, orthonormal_to, principal

SIZE, LIMIT = 12, 3


@pytest.fixture(scope="module")
def setting():
    """A problem, its view of the lowest shells, and a batch of its particles at unit noise."""
    made = simulated(n=300, size=SIZE, snr=0.3, seed=3)
    prob = problem(made.particles, Homogeneous())
    view = View(prob.observation, component_lattice(prob.family), LIMIT)
    return prob, view, prob.whole()


def with_images(batch: Batch, view: View, d, noise):
    """The batch with whitened residuals d put into its lowest pixels, centred back to where the file has them."""
    obs = view.observation
    sd = np.sqrt(np.asarray(obs.pixel_variance(noise, batch.group)))[:, view.pixels]
    points = obs.disc.grid(obs.spacing).points
    images = np.zeros(batch.images.shape, np.complex64)
    images[:, view.pixels] = d * sd
    return dataclasses.replace(batch, images=jnp.asarray(images) * phase_ramp(points, batch.shift))


def noise_of(rng, shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def test_coordinates_are_orthonormal_and_real(setting):
    band = LowBand(SIZE, LIMIT)
    maps = np.asarray(band.maps(np.eye(2 * len(band.place))), np.float64).reshape(2 * len(band.place), -1)
    np.testing.assert_allclose(SIZE * maps @ maps.T, np.eye(len(maps)), atol=1e-5)
    assert (np.abs(np.asarray(Ball(SIZE).power(jnp.asarray(maps.reshape(-1, SIZE, SIZE, SIZE), jnp.float32)))[:, 4:])
            < 1e-8).all()  # fmt: skip


def test_noise_alone_has_a_covariance_of_mean_zero(setting):
    prob, view, batch = setting
    rng, noise = np.random.default_rng(0), prob.starting(jax.random.key(0))["noise"]
    table = view.lattice.table(jnp.zeros((1, *[SIZE] * 3)))
    values, projected = [], []
    basis = LowBand(SIZE, LIMIT).maps(np.eye(len(LowBand(SIZE, LIMIT).place) * 2)[:3])
    both = view.lattice.table(jnp.concatenate([jnp.zeros((1, *[SIZE] * 3)), basis]))
    for _ in range(60):
        pure = with_images(batch, view, noise_of(rng, (len(batch.weight), len(view.pixels))), noise)
        sums, exact = ColumnSums(view, SIZE), ProjectedSums(view, 3)
        sums.add(table, noise, pure)
        exact.add(both, noise, pure)
        values.append(sums.product / np.tile(sums.weight + 1e-3 * sums.weight.mean(), (2, 2)))
        projected.append(exact.solve())
    for found in (np.array(values), np.array(projected)):
        t = found.mean(0) / (found.std(0, ddof=1) / np.sqrt(len(found)) + 1e-12)
        t = t[np.triu_indices(len(t))]  # Student's with 59 degrees of freedom, of variance 59/57
        assert (t**2).sum() * 57 / 59 < chi2.ppf(0.9999, t.size), (t**2).mean()


def test_voxel_pairs_solve_the_dense_problem(setting):
    """With pixels that are measurements of their nearest voxel the sums give the least-squares Sigma of a dense solver.

    Dense: all products of the pixels of an image, each an equation for one entry of Sigma.
    """
    prob, view, batch = setting
    noise = prob.starting(jax.random.key(0))["noise"]
    table, band = view.lattice.table(jnp.zeros((1, *[SIZE] * 3))), LowBand(SIZE, LIMIT)
    d, ctf, _ = (np.asarray(v) for v in covariance.residuals(view, table, noise, batch))
    xi = (
        np.einsum("mi,bij->bmj", np.asarray(view.points), np.asarray(batch.rotation)[:, :2])
        * SIZE
        * prob.observation.spacing
    )
    at = np.rint(xi).astype(int) + LIMIT + 1
    found = band.lookup[at[..., 2], at[..., 1], at[..., 0]]
    first, second = 5, 9  # two voxels
    top, bottom = 0.0, 0.0
    for image, transfer, voxel in zip(d, ctf, found, strict=True):
        for a in np.flatnonzero(np.abs(voxel) == first + 1):
            for b in np.flatnonzero(np.abs(voxel) == second + 1):
                x, y = (np.conj(image[k]) if voxel[k] < 0 else image[k] for k in (a, b))
                top += transfer[a] * transfer[b] * 2 * x.real * y.real
                bottom += (transfer[a] * transfer[b]) ** 2
    sums = ColumnSums(view, SIZE)
    sums.add(table, noise, batch)
    assert bottom > 0
    assert sums.product[first, second] == pytest.approx(top, rel=1e-4)
    assert sums.weight[first, second] == pytest.approx(bottom, rel=1e-4)
    own = sum((t[np.abs(v) == first + 1] ** 2).sum() for t, v in zip(ctf, found, strict=True))
    raw = sum((np.sqrt(2) * (t * np.where(v < 0, np.conj(i), i).real)[np.abs(v) == first + 1]).sum() ** 2
              for i, t, v in zip(d, ctf, found, strict=True))  # fmt: skip
    assert sums.product[first, first] == pytest.approx(raw - own, rel=1e-3, abs=1e-3)


def test_the_projected_covariance_is_found(setting):
    """Images of random combinations of three maps, by the very slices of the estimate: S within its error."""
    prob, view, batch = setting
    rng, noise = np.random.default_rng(2), prob.starting(jax.random.key(0))["noise"]
    band = LowBand(SIZE, LIMIT)
    basis = band.maps(np.linalg.qr(rng.normal(size=(2 * len(band.place), 3)))[0].T)
    table = view.lattice.table(jnp.concatenate([jnp.zeros((1, *[SIZE] * 3)), basis]))
    _, _, slices = (np.asarray(v) for v in covariance.residuals(view, table, noise, batch))
    power = (np.abs(slices) ** 2).sum(1).mean()
    true = np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]]) * 30 / power
    root, exact = np.linalg.cholesky(true), ProjectedSums(view, 3)
    for _ in range(20):
        z = rng.normal(size=(len(slices), 3)) @ root.T
        d = np.einsum("bml,bl->bm", slices, z) + noise_of(rng, slices.shape[:2])
        exact.add(table, noise, with_images(batch, view, d, noise))
    np.testing.assert_allclose(exact.solve(), true, atol=0.08 * true[0, 0])


def test_principal_maps_have_the_covariance():
    rng = np.random.default_rng(0)
    basis = orthonormal_to(jnp.ones((4, 4, 4)), jnp.asarray(rng.normal(size=(3, 4, 4, 4)), jnp.float32))
    flat = np.asarray(basis).reshape(3, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(3), atol=1e-5)
    assert np.abs(flat.sum(1)).max() < 1e-4  # orthogonal to the mean
    root = rng.normal(size=(3, 3))
    found = np.asarray(principal(basis, root @ root.T, 3), np.float64).reshape(3, -1)
    np.testing.assert_allclose(found.T @ found, flat.T @ (root @ root.T) @ flat, atol=1e-4)
