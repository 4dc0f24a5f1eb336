"""The test of leakage finds what was planted, and nothing where nothing was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from hetmodels.analysis.leakage import COST, SHARE, explained_share, leakage
from hetmodels.data.particles import Particles
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.rotations import uniform
from hetmodels.posterior import Posterior
from hetmodels.tree import pytree
from hetmodels.volumes.gaussians import Gaussians

COUNT, SIZE, SPACING, NOISE = 400, 12, 8.0, 1.0


@pytree
class Stretch:
    """Three beads; the latents move one of them, the second latent by a little."""

    def shared(self):
        return {}

    def conformation(self, shared):
        return dist.Normal(0, 1).expand([2]).to_event(1)

    def volume(self, shared, z):
        far = jnp.array([0.0, 16.0, 0.0]) + 6.0 * z[0] * jnp.array([0.0, 1.0, 0.0]) + z[1] * jnp.array([1.0, 0, 0])
        centres = jnp.stack([jnp.array([-14.0, 0, 4]), jnp.array([12.0, -6, 0]), far])
        return Gaussians(centres, jnp.full(3, 4e4), jnp.full(3, 8.0))


@pytest.fixture(scope="module")
def seen():
    """Particles, and the latents they were made with."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(COUNT, 2))
    rotation, disc, one = uniform(jax.random.key(0), COUNT), Disc(SIZE), np.ones(COUNT)
    defocus = rng.uniform(8e3, 2e4, COUNT)
    ctf = dataclasses.replace(
        Ctf.ideal(COUNT), defocus_u=defocus, defocus_v=defocus, voltage=300 * one, spherical=2.7e7 * one,
        amplitude=0.1 * one,
    )  # fmt: skip
    grid = disc.grid(SPACING)
    slices = jax.vmap(lambda z, turn: Stretch().volume({}, z).project(turn, grid))(jnp.asarray(z), rotation)
    clean = np.asarray(disc.inverse(slices * ctf.transfer(grid.points)))
    images = (clean + NOISE * rng.normal(size=clean.shape)).astype(np.float32)
    return Particles.from_arrays(images, np.asarray(rotation), np.zeros((COUNT, 2)), ctf, SPACING), z


def posterior(particles, mean):
    noise = (NOISE**2 / particles.reference)[None, None]
    local = {
        "mean": mean.astype(np.float32), "responsibilities": np.ones((COUNT, 1)), "outlier": np.zeros(COUNT),
        "contrast": np.ones(COUNT), "rotation": np.asarray(particles.rotation), "shift": np.zeros((COUNT, 2)),
        "held_out": np.zeros(COUNT, bool),
    }  # fmt: skip
    return Posterior(Stretch(), {"noise": noise.astype(np.float32)}, True, local)


def test_honest_latents_pass(seen):
    particles, z = seen
    found = leakage(posterior(particles, z), particles)
    assert not found.rejected
    assert found.cost > COST
    assert max(found.explained.values()) < SHARE
    assert "about the density" in found.words[0]


def planted(particles, z, name, share):
    turn = np.asarray(particles.rotation)
    what = {"defocus": particles.ctf.defocus_u, "view": turn[:, 2, 2] ** 2}[name]
    signal = (what - what.mean()) / what.std()
    leaky = z.copy()
    leaky[:, 1] = (1 - share) ** 0.5 * z[:, 1] + share**0.5 * signal
    return leaky


@pytest.mark.parametrize("name", ["defocus", "view"])
def test_a_leak_into_the_weaker_latent_is_found(seen, name):
    particles, z = seen
    found = leakage(posterior(particles, planted(particles, z, name, 0.3)), particles, rows=100)
    assert found.rejected
    assert abs(found.explained[name] - 0.3) < 0.12
    assert max(v for k, v in found.explained.items() if k != name) < SHARE
    assert any({"defocus": "defocus", "view": "pose"}[name] in words for words in found.words)


def test_latents_that_say_nothing_are_rejected(seen):
    particles, _ = seen
    z = np.random.default_rng(5).normal(size=(COUNT, 2))
    found = leakage(posterior(particles, z), particles)
    assert found.rejected
    assert abs(found.cost) < 6 * found.cost_se
    assert "say little" in found.words[0]


def test_latents_that_follow_the_brightness_are_found(seen):
    particles, z = seen
    rng = np.random.default_rng(3)
    brightness = 1 + 0.3 * rng.normal(size=COUNT)
    bright = Particles.from_arrays(
        (particles.images(np.arange(COUNT)) * brightness[:, None, None]).astype(np.float32),
        np.asarray(particles.rotation), np.zeros((COUNT, 2)), particles.ctf, SPACING,
    )  # fmt: skip
    mixed = z.copy()
    mixed[:, 1] = 0.6 * z[:, 1] + 0.8 * (brightness - 1) / 0.3
    found = leakage(posterior(bright, mixed), bright)
    assert found.explained["contrast"] > 0.3
    assert any("contrast as an unknown" in words for words in found.words)


def test_chance_explains_nothing():
    """Eight latents, fourteen features, few particles: the raw correlation is large, the corrected share is not."""
    shares = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shares.append(explained_share(rng.normal(size=(250, 8)), rng.normal(size=(250, 14)), rng))
    assert np.max(shares) < SHARE
    rng = np.random.default_rng(0)
    assert np.isnan(explained_share(rng.normal(size=(50, 2)), rng.normal(size=(50, 14)), rng))
    assert np.isnan(explained_share(rng.normal(size=(500, 2)), np.ones((500, 2)), rng))


def test_a_share_is_recovered_whatever_the_scales():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 3)) * [1e4, 1.0, 1e-3]
    z = rng.normal(size=(4000, 4))
    z[:, 2] = 50 * (0.8 * z[:, 2] + 0.6 * x[:, 0] / 1e4)
    assert abs(explained_share(z, x, rng) - 0.36) < 0.04


def test_without_latents_there_is_no_verdict(seen):
    particles, _ = seen
    assert leakage(posterior(particles, np.zeros((COUNT, 0))), particles) is None
