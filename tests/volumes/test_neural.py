"""Laws of the neural density: it is real, its slices are those of its voxels, encodings and starts are as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.imaging.grids import Disc, Grid
from hetmodels.imaging.rotations import uniform
from hetmodels.testing import check_volume
from hetmodels.volumes.neural import GaussianWaves, GeometricWaves, NeuralVolume, half_product, initial_weights

SIZE, SPACING = 16, 5.0


def volume(dims=2, waves=GaussianWaves(), hidden=24, layers=2, products="float32", size=SIZE):  # noqa: B008
    count = len(waves.displacements(size))
    weights = initial_weights(jax.random.key(0), count, dims, hidden, layers)
    envelope = tuple(np.linspace(2.0, 0.5, (size - 1) // 2 + 1).tolist())
    return NeuralVolume(weights, jnp.arange(1.0, dims + 1), waves, size, SPACING, envelope, products)


@pytest.mark.parametrize(
    ("dims", "size", "waves"), [(2, SIZE, GaussianWaves()), (0, SIZE - 1, GeometricWaves(0.5))], ids=["even", "odd"]
)
def test_is_a_volume(dims, size, waves):
    check_volume(volume(dims, waves, size=size), size=size, spacing=SPACING, tolerance=1e-5)


def test_other_boxes_see_the_same_density():
    """Larger boxes, other voxels: the law holds, and finer voxels have the old values in between."""
    field = volume()
    check_volume(field, size=20, spacing=0.8 * SPACING, tolerance=1e-5)
    fine = np.asarray(field.density(2 * SIZE, SPACING / 2))
    assert np.allclose(fine[::2, ::2, ::2], field.density(SIZE, SPACING), atol=1e-5 * fine.max())


def test_opposite_views_are_conjugate_mirror_images():
    field, disc, turn = volume(), Disc(SIZE), uniform(jax.random.key(1), 1)[0]
    grid = disc.grid(SPACING)
    back = Grid(-grid.points, SIZE, SPACING)
    there, mirrored = field.project(turn, grid), field.project(turn, back)
    assert np.allclose(there, np.conj(mirrored), atol=1e-6)
    assert np.abs(there.imag).max() > 0.01


def test_rotating_the_view_is_rotating_the_density():
    """A quarter turn about z maps voxels to voxels."""
    field, grid = volume(), Disc(SIZE).grid(SPACING)
    quarter = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    summed = np.asarray(field.density(SIZE, SPACING).sum(0))
    turned = np.roll(np.rot90(summed, -1), 1, axis=1)  # (A r)_xy = (-y, x), about the voxel SIZE//2
    assert np.allclose(Disc(SIZE).forward(turned), field.project(quarter, grid), atol=1e-4)


def test_gradients_are_finite_differences():
    with jax.enable_x64(True):
        field = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), volume())
        grid = Grid(jnp.asarray(Disc(SIZE).index / (SIZE * SPACING)), SIZE, SPACING)
        turn = jnp.asarray(uniform(jax.random.key(2), 1)[0], jnp.float64)

        def value(field):
            return (jnp.abs(field.project(turn, grid)) ** 2).sum()

        rng = np.random.default_rng(0)
        step = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), field)
        slopes = jax.tree.leaves(jax.grad(value)(field))
        slope = sum(jnp.vdot(g, s) for g, s in zip(slopes, jax.tree.leaves(step), strict=True))
        up, down = (jax.tree.map(lambda x, s, h=h: x + h * s, field, step) for h in (1e-7, -1e-7))
        np.testing.assert_allclose(slope, (value(up) - value(down)) / 2e-7, rtol=1e-5)


def test_a_wave_is_a_displaced_point():
    """A network that passes one pair of waves on is a point off the centre, where its displacement says."""
    waves = GeometricWaves(0.25, 3)  # 0.25 of the box edge: 4 pixels of 16
    weights = initial_weights(jax.random.key(0), 9, 0, 4, 0)
    pick = jnp.zeros((18, 4)).at[0, 0].set(1).at[0, 1].set(-1).at[9, 2].set(1).at[9, 3].set(-1)
    mix = jnp.array([[1.0, 0], [-1, 0], [0, -1], [0, 1]])
    weights |= {"waves": pick, "bias": jnp.zeros(4), "output": mix, "output_bias": jnp.zeros(2)}
    point = NeuralVolume(weights, jnp.zeros(0), waves, SIZE, SPACING, (1.0,) * 8)
    density = np.asarray(point.density(SIZE, SPACING))
    assert np.unravel_index(density.argmax(), density.shape) == (SIZE // 2, SIZE // 2, SIZE // 2 + 4)


def test_encodings_are_those_of_the_papers():
    """In radians per half unit of frequency: N(0, (0.5 D/2)^2), and D/2 … 1 in geometric progression."""
    size = 64
    gaussian = 2 * np.pi * size * GaussianWaves(spread=0.25 / (2 * np.pi)).displacements(size)
    assert gaussian.shape == (96, 3)
    assert abs(gaussian.std() / (0.5 * size / 2) - 1) < 0.05
    geometric = 2 * np.pi * size * GeometricWaves(longest=1 / (4 * np.pi)).displacements(size)
    assert np.allclose(geometric[:32, 0], 32 * (1 / 32) ** (np.arange(32) / 31))
    assert np.allclose(geometric[32:64, 1], geometric[:32, 0])


def test_the_start_is_that_of_torch():
    weights = initial_weights(jax.random.key(0), 96, 8, 256, 3)
    assert abs(weights["waves"].std() * (3 * 200) ** 0.5 - 1) < 0.02
    assert abs(weights["blocks"].std() * (3 * 256) ** 0.5 - 1) < 0.02
    assert float(jnp.abs(weights["output"]).max()) <= 1 / 16


def test_half_products_are_rounded_only_once():
    rng = np.random.default_rng(0)
    x, w, slope = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(2, 5, 64), (64, 7), (2, 5, 7)])
    exact = np.asarray(x) @ np.asarray(w)
    assert 1e-4 < np.abs(half_product(x, w) - exact).max() < 0.15
    found = jax.vjp(half_product, x, w)[1](slope)
    expected = jax.vjp(jnp.matmul, x, w)[1](slope)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.float32
        assert np.abs(a - b).max() < 0.05
    single, half = volume(), volume(products="bfloat16")
    grid = Disc(SIZE).grid(SPACING)
    a, b = single.project(jnp.eye(3), grid), half.project(jnp.eye(3), grid)
    assert 0 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.02
