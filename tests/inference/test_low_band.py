"""The low band is the same problem: its images, maps, spectra and noise predict what the full ones do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated

from hetmodels.families import Subspace
from hetmodels.imaging.ball import Ball
from hetmodels.local import component_lattice, component_slices
from inference.low_band import lowered, raised

SIZE, BOX = 48, 32


@pytest.fixture(scope="module")
def both():
    """A problem with a mask, started at maps whose band ends below that of the small box, and the low one."""
    made = simulated(n=60, size=SIZE, pixel=4.0, snr=0.5)
    task = problem(made.particles, Subspace(dims=2, order=3, region=jnp.ones((SIZE,) * 3)))
    ball, key = Ball(SIZE), jax.random.key(0)
    cut = jnp.asarray((np.arange(ball.shells) < 12).astype(np.float32))
    spectra = {name: value * cut for name, value in task.starting(key).items() if name.endswith("tau2")}
    truth = jnp.asarray(made.truth[0], jnp.float32)
    maps = ball.filter(jnp.stack([truth, truth[::-1], jnp.roll(truth, 3, 1)]), cut)
    start = spectra | {"map": maps[0], "components": maps[1:], "noise": task.starting(key)["noise"]}
    task = dataclasses.replace(task, start=start)
    return task, lowered(task)


def predicted(task):
    """Images of the components as the likelihood sees them, and the pixel variance, in the low band."""
    batch, shared = next(iter(task.batches(0, jax.random.key(0), 54))), task.starting(jax.random.key(0))
    lattice = component_lattice(task.family)
    slices, _ = component_slices(lattice, lattice.table(task.family.components(shared)), batch, task.observation)
    variance = task.observation.pixel_variance(shared["noise"], batch.group)
    return np.asarray(batch.images), np.asarray(slices * batch.ctf[..., None]), np.asarray(variance)


def test_the_low_band_predicts_the_same_pixels(both):
    task, low = both
    assert low.particles.size == BOX and low.size == task.size
    (images, slices, variance), (own, found, seen) = predicted(task), predicted(low)
    pixels = own.shape[1]
    scale = np.sqrt(seen / variance[:, :pixels])  # images are whitened by a reference spectrum of their own band
    np.testing.assert_allclose(own, images[:, :pixels] * scale, rtol=2e-3, atol=1e-5)
    inner = low.particles.disc.shell <= 10  # nearer to the edge of the maps' band their interpolation differs
    full = (slices[:, :pixels] * scale[..., None])[:, inner]
    assert np.linalg.norm(found[:, inner] - full) < 0.01 * np.linalg.norm(full)


def test_what_is_raised_is_what_was_lowered(both):
    task, low = both
    shared = task.starting(jax.random.key(0))
    found = raised(low.starting(jax.random.key(0)), low, task)
    for name in ("map", "components", "map_tau2", "components_tau2", "noise"):
        size = np.abs(np.asarray(shared[name])).max()
        inside = np.s_[..., :15] if name.endswith("tau2") else np.s_[...]
        np.testing.assert_allclose(found[name][inside], shared[name][inside], rtol=1e-4, atol=1e-5 * size)
    power = np.asarray(task.family.frame.power)
    np.testing.assert_allclose(found["map_tau2"][16:], power[16:], rtol=1e-5)


def test_small_images_stay_as_they_are():
    task = problem(simulated(n=20, size=32).particles, Subspace(dims=1))
    assert lowered(task) is task
