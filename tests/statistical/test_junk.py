"""Junk is found and a rare state is kept: ten percent junk of three kinds, two percent of another conformation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import rotations

from hetmodels.analysis import fourier
from hetmodels.analysis.flags import flags
from hetmodels.data.particles import Particles
from hetmodels.data.phantom import phantom
from hetmodels.families import Classes, Homogeneous
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc, phase_ramp
from hetmodels.observation import Outliers
from inference import EM, fit
from inference.weighted import Reconstruction

COUNT, SIZE, PIXEL, SNR = 4000, 32, 6.0, 0.1
COMMON, RARE, EMPTY, OTHER, TWO = range(5)
SHARES = [0.88, 0.02, 0.1 / 3, 0.1 / 3, 0.1 / 3]


def mixed(seed):
    """Images of a molecule, of a rare conformation 16 Å away, of nothing, of another molecule, of two at once."""
    rng = np.random.default_rng(seed)
    states, disc = phantom(4, SIZE, PIXEL), Disc(SIZE)
    grid, kind = disc.grid(PIXEL), rng.choice(5, COUNT, p=SHARES)
    assert 14 < np.sqrt((np.asarray(states[0].centres - states[2].centres) ** 2).sum(1).mean()) < 17
    away = 0.12 * SIZE * PIXEL * rng.normal(size=states[0].centres.shape)
    other = dataclasses.replace(states[0], centres=jnp.asarray(away, jnp.float32))
    project = jax.jit(jax.vmap(lambda volume, r: volume.project(r, grid), in_axes=(None, 0)))
    rotation, shift = rotations(rng, COUNT), PIXEL * rng.normal(size=(COUNT, 2))
    slices = np.zeros((COUNT, disc.pixels), complex)
    for which, volume in ((COMMON, states[0]), (RARE, states[2])):
        slices[kind == which] = project(volume, jnp.asarray(rotation[kind == which], jnp.float32))
    wrong = rotations(rng, int((kind == OTHER).sum()))  # poses of another molecule mean nothing
    slices[kind == OTHER] = project(other, jnp.asarray(wrong, jnp.float32))
    two = int((kind == TWO).sum())
    for side in (1, -1):
        apart = side * 0.25 * SIZE * PIXEL * rng.uniform(-1, 1, (two, 2))
        drawn = project(states[0], jnp.asarray(rotations(rng, two), jnp.float32))
        slices[kind == TWO] += np.asarray(drawn * phase_ramp(grid.points, jnp.asarray(apart, jnp.float32)))
    defocus, one = rng.uniform(8e3, 2e4, COUNT), np.ones(COUNT)
    ctf = dataclasses.replace(
        Ctf.ideal(COUNT), defocus_u=defocus, defocus_v=defocus, voltage=300 * one, spherical=2.7e7 * one,
        amplitude=0.1 * one,
    )  # fmt: skip
    seen = np.asarray(ctf.transfer(grid.points)) * slices
    seen = seen * np.asarray(phase_ramp(grid.points, jnp.asarray(shift, jnp.float32)))
    clean = np.asarray(disc.inverse(jnp.asarray(seen, jnp.complex64)))
    noise = np.sqrt(clean[kind == COMMON].var() / SNR) * rng.normal(size=clean.shape)
    return Particles.from_arrays((clean + noise).astype(np.float32), rotation, shift, ctf, PIXEL), kind


def found(particles, seed, start=None):
    posterior = fit(Classes(2), particles, EM(), key=jax.random.key(seed), outliers=Outliers(), start=start)
    junk = posterior.local["outlier"] > 0.5
    named = next(flag.rows for flag in flags(posterior) if flag.name == "junk")
    np.testing.assert_array_equal(named, junk)
    return posterior, junk


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_junk_is_found_and_the_rare_state_kept(seed):
    """The classes start from blurred maps of both states; the rare one has a fifth of the images that junk has."""
    particles, kind = mixed(seed)
    states = [np.asarray(state.density(SIZE, PIXEL)) for state in phantom(4, SIZE, PIXEL)]
    gain = fourier.lowpass_gain(SIZE, PIXEL, 40.0)
    posterior, junk = found(particles, seed, np.stack([fourier.filtered(states[k], gain) for k in (0, 2)]))
    assert junk[kind >= EMPTY].mean() > 0.9 and junk[kind == COMMON].mean() < 0.001
    assert (~junk)[kind == RARE].mean() > 0.8
    own = posterior.local["responsibilities"].argmax(1) == 1
    assert (own & ~junk)[kind == RARE].mean() > 0.8 and own[kind == COMMON].mean() < 0.1
    evidence = posterior.local["log_evidence"]  # leaving out the least probable tenth is no way to do it
    lost = evidence < np.quantile(evidence, 0.1)
    assert lost[kind >= EMPTY].mean() < 0.9 and lost[kind == RARE].mean() > junk[kind == RARE].mean()


@pytest.mark.slow
def test_a_rare_state_without_a_class_is_found_in_the_map_of_what_was_rejected():
    """Without a class of its own a rare state is taken for junk in part, from a random start of two classes as well.

    But junk has no common map and the rare state has: a class that starts from the map of the rejected images becomes
    the rare state's.
    """
    particles, kind = mixed(0)
    one = fit(Homogeneous(), particles, EM(), key=jax.random.key(0), outliers=Outliers())
    junk = one.local["outlier"] > 0.5
    assert junk[kind >= EMPTY].mean() > 0.9 and junk[kind == COMMON].mean() < 0.001
    assert (~junk)[kind == RARE].mean() < 0.8  # what is to be mended
    rejected = Reconstruction.of(one, particles)((junk & ~particles.held_out).astype(float))
    posterior, junk = found(particles, 0, np.stack([one.map_at(None), rejected]))
    assert junk[kind >= EMPTY].mean() > 0.9 and junk[kind == COMMON].mean() < 0.001
    own = posterior.local["responsibilities"].argmax(1) == 1
    assert (own & ~junk)[kind == RARE].mean() > 0.8 and own[kind == COMMON].mean() < 0.1
