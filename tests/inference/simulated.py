"""Small particle sets for the tests, imaged analytically, never by the projector that fits them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hetmodels.data.particles import Particles
from hetmodels.data.phantom import phantom
from hetmodels.families.protocol import framed
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc, phase_ramp
from hetmodels.initial import first_spectra
from hetmodels.observation import Known, Observation, Radial
from hetmodels.problem import ParticleProblem
from hetmodels.volumes.gaussians import Gaussians


@dataclasses.dataclass(frozen=True, eq=False)
class Simulated:
    """A particle set with its truth."""

    particles: Particles
    truth: np.ndarray
    states: np.ndarray
    noise_sd: float


def uneven(size, pixel, seed=11):
    """Forty blobs at random in an ellipsoid with three different axes: no symmetry, not even nearly."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, 3))
    centres *= rng.uniform(0, 1, (40, 1)) ** (1 / 3) / np.linalg.norm(centres, axis=1, keepdims=True)
    centres = (centres - centres.mean(0)) * np.array([0.36, 0.27, 0.2]) * size * pixel
    weights, widths = rng.uniform(0.5, 1.5, 40), np.full(40, max(size / 64, 1) * pixel)
    return Gaussians(*(jnp.asarray(x, jnp.float32) for x in (centres, weights, widths)))


def winding_chain(count=60, seed=0):
    """Two compact domains of a winding chain, 3.8 Å from bond to bond, (count, 3)."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(count, 3)) + np.where(np.arange(count)[:, None] < count // 2, 0.0, [0.8, 0, 0])
    raw = np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    return raw - raw.mean(0)


def rotations(rng, n):
    q, _ = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    return q * np.linalg.det(q)[:, None, None]


def simulated(n=400, size=16, pixel=12.0, snr=0.2, states=1, seed=0, contrast_sd=0.0, ctf=True, shuffled=False,
              volumes=None):  # fmt: skip
    rng = np.random.default_rng(seed)
    volumes, disc = volumes or phantom(states, size, pixel), Disc(size)
    rotation, shift = rotations(rng, n), rng.normal(size=(n, 2)) * 0.7 * pixel
    transfer = Ctf.ideal(n)
    if ctf:
        defocus, one = rng.uniform(8e3, 2e4, n), np.ones(n)
        transfer = dataclasses.replace(
            transfer, defocus_u=defocus, defocus_v=defocus + 300, azimuth=0.3 * one, voltage=300 * one,
            spherical=2.7e7 * one, amplitude=0.1 * one,
        )  # fmt: skip
    grid, state = disc.grid(pixel), rng.integers(0, states, n)
    project = jax.jit(jax.vmap(lambda volume, r: volume.project(r, grid), in_axes=(None, 0)))
    slices = np.zeros((n, disc.pixels), complex)
    for k in range(states):
        slices[state == k] = project(volumes[k], jnp.asarray(rotation[state == k], jnp.float32))
    model = (
        np.asarray(transfer.transfer(grid.points)) * slices * phase_ramp(grid.points, jnp.asarray(shift, jnp.float32))
    )
    clean = np.asarray(disc.inverse(jnp.asarray(model, jnp.complex64)))
    clean = clean * (1 + contrast_sd * rng.normal(size=(n, 1, 1)))
    sd = float(np.sqrt(clean.var() / snr))
    images = (clean + sd * rng.normal(size=clean.shape)).astype(np.float32)
    if shuffled:
        rotation = rotation[rng.permutation(n)]
    particles = Particles.from_arrays(images, rotation, shift, transfer, pixel)
    truth = np.stack([np.asarray(v.density(size, pixel)) for v in volumes])
    return Simulated(particles, truth, state, sd)


def problem(particles, family, halves=False, **choices):
    first, frame = first_spectra(particles)
    noise = np.tile(first, (2 if halves else 1, 1))
    obs = {"noise": Radial(tuple(map(tuple, noise.tolist()))), "pose": Known(), **choices}
    count = int((~particles.held_out).sum())
    observation = Observation(particles.disc, particles.spacing, len(noise), count, **obs)
    return ParticleProblem.of(framed(family, frame), particles, observation, halves=halves)


def truth_fsc(a, b):
    size = a.shape[-1]
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    line = np.fft.fftfreq(size, 1 / size)
    shell = np.rint(np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)).astype(int).ravel()
    total = lambda x: np.bincount(shell, x.ravel())[: size // 2]  # noqa: E731
    return total((fa.conj() * fb).real) / np.sqrt(total(np.abs(fa) ** 2) * total(np.abs(fb) ** 2))
