"""Laws of point groups: closed, RELION's own matrices, and projections that do not change."""

import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.errors import UsageError
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.poses import Sphere, step_of
from hetmodels.imaging.rotations import geodesic, uniform
from hetmodels.imaging.symmetry import Symmetrised, elements, log_share, symmetrised
from hetmodels.volumes.gaussians import Gaussians

ORDERS = {"C1": 1, "C5": 5, "D2": 4, "D7": 14, "T": 12, "O": 24, "I1": 60, "I2": 60, "I3": 60, "I4": 60}


def beads(size, pixel, seed=0, n=12):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-0.25, 0.25, (n, 3)) * size * pixel
    return Gaussians(*(jnp.asarray(v, jnp.float32) for v in (centres, rng.uniform(0.5, 1.5, n), np.full(n, pixel))))


def same_set(a, b, tolerance):
    away = np.abs(a[:, None] - b[None]).max((2, 3))
    return len(a) == len(b) and away.min(1).max() < tolerance and away.min(0).max() < tolerance


@pytest.mark.parametrize("name", ORDERS)
def test_groups_are_closed_sets_of_rotations(name):
    group = elements(name)
    assert len(group) == ORDERS[name]
    np.testing.assert_array_equal(group[0], np.eye(3))
    np.testing.assert_allclose(group @ group.transpose(0, 2, 1), np.broadcast_to(np.eye(3), group.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(group), 1, atol=1e-12)
    assert same_set(group, np.swapaxes(group, 1, 2), 1e-9)
    for g in group[1:4]:
        assert same_set(group @ g, group, 1e-9)


@pytest.mark.parametrize("name", ["C4", "D3", "T", "O", "I1", "I2", "I3", "I4"])
def test_groups_are_those_of_relion(name):
    program = shutil.which("relion_refine")
    if program is None:
        pytest.skip("needs relion_refine on the path")
    said = subprocess.run([program, "--print_symmetry_ops", "--sym", name], capture_output=True, text=True, check=False)
    blocks = [block.split("Euler")[0].split("=")[1] for block in said.stdout.split("R(")[1:]]
    theirs = [np.array(re.findall(r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?", b)[:9], float).reshape(3, 3) for b in blocks]
    assert same_set(elements(name), np.stack(theirs), 1e-3)


def test_unknown_groups_are_refused():
    for name in ("C0", "D", "I5", "X", "C99"):
        with pytest.raises(UsageError, match="a group is one of"):
            elements(name)


@pytest.mark.parametrize("name", ["C3", "D2", "T", "O", "I1", "I4"])
def test_projections_of_a_symmetrised_volume_do_not_change(name):
    disc = Disc(24)
    grid, volume = disc.grid(3.0), Symmetrised(beads(24, 3.0), name)
    rotation, group = uniform(jax.random.key(0), 1)[0], elements(name)
    with jax.enable_x64(True):
        project = jax.jit(lambda r: volume.project(r, grid))
        first = project(rotation.astype(jnp.float64))
        for g in group[1 :: max(1, len(group) // 5)]:
            other = project(rotation.astype(jnp.float64) @ g)
            assert float(jnp.abs(other - first).max() / jnp.abs(first).max()) < 1e-6


@pytest.mark.parametrize("name", ["C3", "I2"])
def test_symmetrised_maps_are_the_mean_of_rotated_copies(name):
    size, pixel, volume = 24, 3.0, beads(24, 3.0)
    group = elements(name)
    centres = jnp.concatenate([volume.centres @ jnp.asarray(g, jnp.float32) for g in group])
    many = Gaussians(centres, jnp.tile(volume.weights / len(group), len(group)), jnp.tile(volume.widths, len(group)))
    expected = np.asarray(many.density(size, pixel))
    found = np.asarray(symmetrised(volume.density(size, pixel), pixel, name))
    grid = Disc(size).grid(pixel)
    turn = uniform(jax.random.key(1), 1)[0]
    np.testing.assert_allclose(Symmetrised(volume, name).project(turn, grid), many.project(turn, grid), atol=1e-6)
    low = lambda v: np.fft.fftn(v)[:6, :6, :6]  # noqa: E731
    assert np.abs(low(found) - low(expected)).max() < 5e-3 * np.abs(low(expected)).max()
    again = np.asarray(symmetrised(jnp.asarray(found), pixel, name))
    assert np.abs(again - found).max() < 0.02 * np.abs(found).max()


@pytest.mark.parametrize("name", ["C1", "C3", "D2", "O", "I1"])
def test_shares_of_alike_rotations_add_up(name):
    rotation = uniform(jax.random.key(2), 200)
    group = jnp.asarray(elements(name), jnp.float32)
    share = jnp.exp(log_share(jnp.einsum("nij,gjk->ngik", rotation, group), name, 0.3))
    np.testing.assert_allclose(share.sum(1), len(group), rtol=1e-4)
    # every rotation, brought near the identity, lies in a cell that is kept
    grid = Sphere.of(1)
    cells = grid.rotation(jnp.arange(grid.cells)[None], jnp.eye(3)[None])[0]
    kept = np.asarray(cells)[np.isfinite(np.asarray(log_share(cells, name, 1.4 * step_of(1))))]
    assert len(kept) < 576 or name == "C1"
    alike = jnp.einsum("nij,gjk->ngik", rotation, group)
    unit = jnp.take_along_axis(alike, jnp.trace(alike, axis1=2, axis2=3).argmax(1)[:, None, None, None], 1)[:, 0]
    nearest_kept = np.asarray(geodesic(unit[:, None], kept[None])).min(1)
    nearest = np.asarray(geodesic(unit[:, None], cells[None])).min(1)
    np.testing.assert_allclose(nearest_kept, nearest, atol=1e-5)
