"""Blocks that move by screws stay rigid at any amplitude, and move along the mode at small ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from simulated import winding_chain
from test_normal_modes import write_pdb

from hetmodels.families import NormalModes
from hetmodels.families.elastic_network import normal_modes
from hetmodels.families.protocol import Frame, framed
from hetmodels.families.screws import Screws
from hetmodels.posterior import Posterior
from hetmodels.testing import check_family


def test_bonds_inside_blocks_are_kept_at_eight_angstrom():
    rest, number = winding_chain(60), np.arange(60) // 5
    _, modes = normal_modes(rest, 2, blocks=number)
    inside = np.flatnonzero(number[1:] == number[:-1])
    bond = lambda x: np.linalg.norm(np.diff(np.asarray(x), axis=0), axis=1)[inside]  # noqa: E731
    with jax.enable_x64(True):
        screws, far = Screws.of(rest, modes, number), 8 * np.sqrt(60.0) * jnp.array([1.0, 0.0])
        move = lambda z: screws.moved(jnp.asarray(rest), z)  # noqa: E731
        moved = jax.jit(move)(far)
        slope = jax.jit(jax.jacfwd(move))(jnp.zeros(2))
    straight = rest + 8 * np.sqrt(60.0) * modes[0]
    assert np.abs(bond(moved) - bond(rest)).max() < 1e-6 < 1e-2 < np.abs(bond(straight) - bond(rest)).max()
    np.testing.assert_allclose(np.moveaxis(slope, -1, 0), modes, atol=1e-9)
    assert 4 < np.sqrt(((np.asarray(moved) - rest) ** 2).sum(1).mean()) < 9


def test_a_screw_is_the_exponential_of_its_twist():
    """A block of three atoms against the matrix exponential in homogeneous coordinates; lone atoms move straight."""
    rng = np.random.default_rng(0)
    rest, blocks = rng.normal(size=(5, 3)), np.array([7, 7, 7, 2, 3])
    w, v = np.array([0.3, -1.2, 0.8]), np.array([1.0, 2.0, -0.5])
    mode = np.zeros((1, 5, 3))
    mode[0, :3] = v + np.cross(w, rest[:3] - rest[:3].mean(0))
    mode[0, 3:] = rng.normal(size=(2, 3))
    with jax.enable_x64(True):
        screws = Screws.of(rest, mode, blocks)
        move = jax.jit(lambda size: screws.moved(jnp.asarray(rest), size[None]))
        for size in (1e-3, 0.05, 1.0):
            twist = np.zeros((4, 4))
            twist[:3, 3] = v
            twist[:3, :3] = np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])
            moved = np.asarray(move(jnp.asarray(size)))
            exact = scipy.linalg.expm(size * twist)
            about = rest[:3] - rest[:3].mean(0)
            np.testing.assert_allclose(moved[:3], rest[:3].mean(0) + about @ exact[:3, :3].T + exact[:3, 3], atol=1e-11)
            np.testing.assert_allclose(moved[3:], rest[3:] + size * mode[0, 3:], atol=1e-12)


@pytest.mark.slow
def test_the_family_moves_its_blocks_by_screws(tmp_path):
    """The bonds of the volume at 8 Å, its saved copy, and the family's protocol."""
    path = write_pdb(tmp_path / "a.pdb", winding_chain(60))
    family = NormalModes(dims=2, structure=str(path), block=5)
    check_family(family)
    family = framed(family, Frame(16, 8.0, (1.0,) * 8))
    shared = {"grey": jnp.ones(()), "spread": jnp.ones(())}
    posterior = Posterior(family, {name: np.ones((1, 1)) for name in shared}, True)
    posterior.save(tmp_path / "posterior.nc")
    again = Posterior.load(tmp_path / "posterior.nc").family
    inside = np.flatnonzero(np.arange(60)[1:] // 5 == np.arange(60)[:-1] // 5)
    bond = lambda x: np.linalg.norm(np.diff(np.asarray(x), axis=0), axis=1)[inside]  # noqa: E731
    rest, moved = family.volume(shared, jnp.zeros(2)), again.volume(shared, jnp.array([8.0, 0.0]))
    assert np.abs(bond(moved.centres) - bond(rest.centres)).max() < 1e-4  # single precision
    np.testing.assert_allclose(moved.centres, family.volume(shared, jnp.array([8.0, 0.0])).centres, atol=1e-5)
