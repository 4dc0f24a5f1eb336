"""Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788): what is drawn from the prior, imaged and inferred
lies at a uniformly distributed rank among its posterior draws.

Seeds are fixed, so that a test fails always or never. Over seeds a right sampler fails one that looks at m quantities
with probability at most m/100: each looks at a chi-squared p value that must exceed 0.01.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2, chisquare, norm
from simulated import problem, simulated, winding_chain

from hetmodels.data.particles import Particles
from hetmodels.families import Homogeneous, NormalModes, Subspace
from hetmodels.families.elastic_network import normal_modes
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.rotations import from_rotvec, uniform
from hetmodels.observation import Contrast, FixedNoise, Observation, Refined
from hetmodels.problem import ParticleProblem
from hetmodels.volumes.gaussians import Gaussians
from inference.gibbs import LinearGibbs
from inference.local_chains import LocalHMC

pytestmark = pytest.mark.slow
BINS = 16


def p_uniform(place):
    """Chi-squared p value of places in [0, 1) being uniform, in 16 bins."""
    return chisquare(np.bincount((np.asarray(place) * BINS).astype(int), minlength=BINS)).pvalue


def places(truth, draws):
    """Ranks of truths among their draws (replicates, 16 k - 1), as places in [0, 1)."""
    assert (draws.shape[1] + 1) % BINS == 0
    return (draws < truth[:, None]).sum(1) / (draws.shape[1] + 1)


def uniform_all(found):
    """Every quantity, by name, is uniform."""
    p = {name: p_uniform(place) for name, place in found.items()}
    assert min(p.values()) > 0.01, p


def test_maps_and_their_scale():
    """A map with the contrast of each image integrated, by Gibbs: its norm, its powers, a voxel, its density.

    Five quantities of 160 maps: a right sampler fails on 5 % of the seeds at most.
    """
    data = simulated(n=24, size=8, pixel=24.0, snr=1.0)
    task = problem(data.particles.with_holdout(0.0), Homogeneous(), contrast=Contrast(0.3), noise=FixedNoise())
    task = dataclasses.replace(task, given={"map_tau2": 5 * jnp.asarray(task.sites["map_tau2"]["value"])})
    chains, batch = LinearGibbs(tolerance=1e-3).bind_problem(task, 0), task.whole()
    draws, thin, burn = 15, 2, 8

    def read(x, data):
        shared = task.shared(x)
        spectrum = jnp.abs(jnp.fft.fftn(shared["map"])) ** 2
        low = spectrum[:2, :2, :2].sum()
        return jnp.stack([spectrum.sum(), low, shared["map"][4, 4, 4], shared["map"][2, 5, 4], chains.density(x, data)])

    def one(key):
        key_x, key_y, key_chain = jax.random.split(key, 3)
        truth = {n: jax.random.normal(key_x, task.sites[n]["value"].shape) for n in chains.white}
        images, _, _ = task.simulate(key_y, task.shared(truth), batch)
        state = chains.init(key_chain[None], jax.tree.map(lambda v: 0 * v[None], truth), images)
        state = jax.lax.fori_loop(0, burn, lambda _, s: chains.sample(s, images), state)

        def keep(state, _):
            state = jax.lax.fori_loop(0, thin, lambda _, s: chains.sample(s, images), state)
            return state, read(jax.tree.map(lambda v: v[0], state.x), images)

        return read(truth, images), jax.lax.scan(keep, state, None, length=draws)[1]

    truth, drawn = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), 160))
    truth, drawn = np.asarray(truth, float), np.asarray(drawn, float)
    names = ("norm", "low", "middle", "voxel", "density")
    uniform_all({n: places(truth[:, i], drawn[:, :, i]) for i, n in enumerate(names)})


@pytest.mark.parametrize("contrast", [None, Contrast(0.2)], ids=["one", "spread"])
def test_latents_of_a_subspace(contrast):
    """Two Gaussian latents given the maps: their places in the normal that `infer` returns.

    Three quantities of 2,000 particles: a right one fails on 3 % of the seeds at most.
    """
    data = simulated(n=2000, size=12, pixel=16.0)
    task = problem(data.particles.with_holdout(0.0), Subspace(dims=2), contrast=contrast, noise=FixedNoise())
    x = task.initial(jax.random.key(1))
    shared = task.shared({name: 10 * v if name.endswith("white") else v for name, v in x.items()})
    shared |= {name: 3 * shared[name] for name in ("map", "components")}
    batch, z, _ = task.simulate(jax.random.key(2), shared, task.whole())
    found = jax.jit(lambda batch: task.infer(jax.random.key(3), shared, batch))(batch)
    mean, covariance = np.asarray(found.mean, float), np.asarray(found.covariance, float)
    z, sd = np.asarray(z, float), np.sqrt(covariance[:, [0, 1], [0, 1]])
    assert np.all((sd.mean(0) > 0.2) & (sd.mean(0) < 0.8))
    off = np.einsum("ni,nij,nj->n", z - mean, np.linalg.inv(covariance), z - mean)
    each = norm.cdf((z - mean) / sd)
    uniform_all({"first": each[:, 0], "second": each[:, 1], "together": chi2.cdf(off, 2)})


def test_amplitudes_of_normal_modes_and_poses():
    """Two amplitudes and the pose of each image by a chain of its own: five numbers about the file's pose, and where
    the particle's axis points, which no choice of coordinates of the rotation changes.

    Eight quantities of 512 images: a right sampler fails on 8 % of the seeds at most.
    """
    size, pixel, count, draws = 16, 4.5, 512, 31
    rest = winding_chain(40)
    values, modes = normal_modes(rest, 2)
    atoms = Gaussians(*(jnp.asarray(v, jnp.float32) for v in (rest, np.ones(40), np.full(40, 3.0))))
    softness = jnp.asarray(np.sqrt(values[0] / values), jnp.float32)
    family = NormalModes(dims=2, atoms=atoms, modes=jnp.asarray(modes, jnp.float32), softness=softness)
    turned = uniform(jax.random.key(0), count)
    blank = np.random.default_rng(0).standard_normal((count, size, size)).astype(np.float32)
    particles = Particles.from_arrays(blank, np.asarray(turned), np.zeros((count, 2)), Ctf.ideal(count), pixel)
    particles = particles.with_holdout(0.0)
    pose = Refined(rotation_sd=0.15, shift_sd=2.0)
    observation = Observation(particles.disc, pixel, 1, count, pose, FixedNoise())
    task = ParticleProblem.of(family, particles, observation)
    signal = jax.jit(jax.vmap(lambda r: atoms.project(r, particles.disc.grid(pixel))))(turned)
    level = float((np.abs(signal) ** 2).mean() / 0.5)
    shared = {"noise": jnp.full((1, particles.disc.shells), level), "grey": jnp.ones(()), "spread": jnp.asarray(3.0)}
    batch, z, poses = task.simulate(jax.random.key(1), shared, task.whole())
    found = LocalHMC(draws=8 * draws, warmup=150, chains=1, leapfrog=8).program(task)(jax.random.key(2), shared, batch)
    kept = {name: np.asarray(v)[:, 0, 7::8] for name, v in found.latents.items()}
    truth = {"z": z, "pose_rotation": poses["rotation"], "pose_shift": poses["shift"]}
    places_of = {}
    for name, width in (("z", 2), ("pose_rotation", 3), ("pose_shift", 2)):
        for axis in range(width):
            places_of[f"{name}_{axis}"] = places(np.asarray(truth[name])[:, axis], kept[name][..., axis])
    along = lambda w: np.asarray(from_rotvec(jnp.asarray(w)) @ turned[:, *([None] * (w.ndim - 2))])[..., 0, 2]  # noqa: E731
    places_of["axis"] = places(along(np.asarray(truth["pose_rotation"])), along(kept["pose_rotation"]))
    spread = kept["z"].std(1) / (3 * np.asarray(softness))
    assert 0.2 < spread.mean() < 0.9
    uniform_all(places_of)
