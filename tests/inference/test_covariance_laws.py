"""T12: the steps of the covariance estimate against dense solvers, and without bias over 200 replicates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated
from test_covariance import noise_of, with_images

from hetmodels.families import Homogeneous
from hetmodels.local import component_lattice
from inference import covariance
from inference.covariance import ColumnSums, LowBand, ProjectedSums, View

SIZE, LIMIT, COUNT, REPLICATES = 8, 3, 3, 200


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sixty images at unit noise, three orthonormal maps, and the maps' slices in the images."""

    view: View
    batch: object
    noise: object
    table: object
    slices: np.ndarray
    ctf: np.ndarray

    def images(self, d):
        return with_images(self.batch, self.view, d, self.noise)


@pytest.fixture(scope="module")
def setting():
    task = problem(simulated(n=60, size=SIZE, snr=0.3, seed=3).particles, Homogeneous())
    view, noise = (
        View(task.observation, component_lattice(task.family), LIMIT),
        task.starting(jax.random.key(0))["noise"],
    )
    band = LowBand(SIZE, LIMIT)
    vectors = np.linalg.qr(np.random.default_rng(1).normal(size=(2 * len(band.place), COUNT)))[0].T
    table = view.lattice.table(jnp.concatenate([jnp.zeros((1, *[SIZE] * 3)), band.maps(vectors)]))
    batch = task.whole()
    _, ctf, slices = (np.asarray(v, np.complex128) for v in covariance.residuals(view, table, noise, batch))
    return Setting(view, batch, noise, table, slices, ctf.real)


def real(d):
    return np.concatenate([d.real, d.imag], axis=1)


def test_projected_least_squares_is_the_dense_least_squares(setting):
    """All products of the pixels of an image, each an equation for S: |d d^T - 1/2 - A S A^T|^2 at its least."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(len(setting.slices), COUNT)) * 3 / np.sqrt((np.abs(setting.slices) ** 2).sum(1).mean())
    d = np.einsum("bml,bl->bm", setting.slices, z) + noise_of(rng, setting.slices.shape[:2])
    batch = setting.images(d)
    sums = ProjectedSums(setting.view, COUNT)
    sums.add(setting.table, setting.noise, batch)
    d = np.asarray(covariance.residuals(setting.view, setting.table, setting.noise, batch)[0], np.complex128)
    a, y = real(setting.slices), real(d)
    first, second = np.triu_indices(COUNT)
    columns = [
        np.einsum("bm,bn->bmn", a[..., i], a[..., j]) + (i != j) * np.einsum("bm,bn->bmn", a[..., j], a[..., i])
        for i, j in zip(first, second, strict=True)
    ]
    design = np.stack([c.ravel() for c in columns], axis=1)
    target = np.einsum("bm,bn->bmn", y, y) - 0.5 * np.eye(y.shape[1])
    dense = np.linalg.lstsq(design, target.ravel(), rcond=None)[0]
    np.testing.assert_allclose(sums.solve()[first, second], dense, rtol=0, atol=3e-6 * np.abs(dense).max())


def test_projected_least_squares_has_no_bias(setting):
    """The mean over replicates lies within its error of the truth: no entry, and all entries together."""
    rng = np.random.default_rng(1)
    power = (np.abs(setting.slices) ** 2).sum(1).mean()
    true = np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]]) * 2 / power
    root, found = np.linalg.cholesky(true), []
    for _ in range(REPLICATES):
        z = rng.normal(size=(len(setting.slices), COUNT)) @ root.T
        sums = ProjectedSums(setting.view, COUNT)
        d = np.einsum("bml,bl->bm", setting.slices, z) + noise_of(rng, setting.slices.shape[:2])
        sums.add(setting.table, setting.noise, setting.images(d))
        found.append(sums.solve())
    found = np.array(found)
    t = (found.mean(0) - true) / (found.std(0, ddof=1) / np.sqrt(REPLICATES))
    assert np.abs(t).max() < 3.2, t  # nine numbers, six of them apart
    assert np.abs(found.mean(0) - true).max() < 0.1 * true.max()


def test_columns_of_voxel_pairs_have_no_bias(setting):
    """Where every pixel measures its nearest voxel, product over weight is Sigma on average, for every pair."""
    rng, band, view = np.random.default_rng(2), LowBand(SIZE, LIMIT), setting.view
    points, rows = np.asarray(view.points), np.asarray(setting.batch.rotation)[:, :2]
    xi = np.einsum("mi,bij->bmj", points, rows) * SIZE * view.observation.spacing
    at = np.rint(xi).astype(int) + LIMIT + 1
    voxel = band.lookup[at[..., 2], at[..., 1], at[..., 0]]
    count = len(band.place)
    factor = 4 * rng.normal(size=(2 * count, 2)) / np.sqrt(count)
    empty, products = setting.view.lattice.table(jnp.zeros((1, *[SIZE] * 3))), []
    for _ in range(REPLICATES):
        a = rng.normal(size=(len(voxel), 2)) @ factor.T
        value = (a[:, :count] + 1j * a[:, count:]) / np.sqrt(2)
        seen = np.take_along_axis(value, np.abs(voxel) - 1, axis=1)
        seen = np.where(voxel < 0, np.conj(seen), seen) * (voxel != 0)
        sums = ColumnSums(view, SIZE)
        d = setting.ctf * seen + noise_of(rng, seen.shape)
        sums.add(empty, setting.noise, setting.images(d))
        products.append(sums.product)
    products, true = np.array(products), factor @ factor.T * np.tile(sums.weight, (2, 2))
    inside = np.tile(sums.weight, (2, 2)) > 0.01 * sums.weight.max()
    error = products.std(0, ddof=1) / np.sqrt(REPLICATES)
    t = ((products.mean(0) - true) / np.maximum(error, 1e-30))[inside & np.triu(np.ones_like(inside))]
    assert len(t) > 100 and np.mean(t**2) == pytest.approx(1, abs=0.35), np.mean(t**2)
    assert np.mean(np.abs(t) > 3) < 0.02
    assert np.abs(true[inside]).max() > 30 * np.median(error[inside])  # there is something to be biased


def test_leading_directions_are_those_of_the_dense_covariance(setting):
    rng, band = np.random.default_rng(3), LowBand(SIZE, LIMIT)
    sums = ColumnSums(setting.view, SIZE)
    root = rng.normal(size=(2 * len(band.place), 6))
    sums.product, sums.weight = root @ root.T, np.ones_like(sums.weight)
    found = np.asarray(sums.leading(COUNT), np.float64).reshape(COUNT, -1)
    values, vectors = np.linalg.eigh(sums.covariance())
    dense = np.asarray(band.maps(vectors.T[::-1][:COUNT]), np.float64).reshape(COUNT, -1)
    assert values[-1] > values[-2] > values[-3] > 0
    np.testing.assert_allclose(np.abs(found @ dense.T) * SIZE, np.eye(COUNT), atol=1e-5)
