"""What a correct analysis at known poses can reach: maps shell by shell, latents under the true maps."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hetmodels.data.particles import Particles
from hetmodels.families.classes import Classes
from hetmodels.families.protocol import Frame
from hetmodels.local import (
    Local,
    centred_images,
    component_lattice,
    component_slices,
    exact_local,
    shell_statistics,
)
from hetmodels.observation import Contrast, Observation

_STATES, _ROWS = 8, 500  # that are compared at a time


def map_ssnr(shell: np.ndarray, particles: float, ctf2: np.ndarray, tau2: np.ndarray, sigma2: np.ndarray) -> np.ndarray:
    """Signal-to-noise ratio of a map, n <C²> tau²/(2 k sigma²).

    A slice passes a voxel at radius k with probability 1/(2k) (circle over sphere), so each voxel is seen n/(2k) times.

    Args:
        shell: radius k [Fourier pixels], 1 and up.
        particles: number n of images, views spread uniformly.
        ctf2: mean squared contrast transfer on each shell.
        tau2: E|V^|² of the map per voxel, orthonormal 2-D normalisation.
        sigma2: E|n|² per complex pixel.

    Returns:
        One value per shell; see `fsc.half_from_ssnr` and `fsc.truth_from_ssnr` for the correlations.
    """
    return particles * ctf2 * tau2 / (2.0 * shell * sigma2)


def particles_for_half(shell: np.ndarray, ctf2: np.ndarray, tau2: np.ndarray, sigma2: np.ndarray) -> np.ndarray:
    """Images needed for a correlation of 0.5 with the truth at each shell, 2 k sigma²/(3 <C²> tau²)."""
    return 2.0 * shell * sigma2 / (3.0 * ctf2 * tau2)


def pose_loss(
    shell: np.ndarray, size: int, shift_sd: float, angle_sd: float, gyration: float, spacing: float
) -> np.ndarray:
    """Factor on amplitudes left by random pose errors, exp(-½ (2πk/N)² (s_t² + ⅔ s_θ² R_g²)) in pixels.

    Args:
        shell: radius k [Fourier pixels].
        size: box edge N [pixels].
        shift_sd: standard deviation of the shift per axis [Å].
        angle_sd: standard deviation of the rotation per axis [rad].
        gyration: root-mean-square radius of the molecule [Å].
        spacing: pixel size [Å].
    """
    variance = shift_sd**2 + 2.0 / 3.0 * (angle_sd * gyration) ** 2
    return np.exp(-0.5 * (2.0 * np.pi * shell / (size * spacing)) ** 2 * variance)


def true_state_posterior(
    particles: Particles,
    maps: Callable[[int], np.ndarray],
    states: int,
    noise: np.ndarray,
    contrast: Contrast | None = None,
) -> np.ndarray:
    """Posterior probability of each true state for each particle, all states alike before, (particles, states).

    No method can rank particles better on average than the mean of the true coordinate under these probabilities.
    The factor between the maps and the images is estimated from all particles and the mean map.

    Args:
        particles: the data, at their true poses.
        maps: gives the true map of a state, from 0, in the box of the data.
        states: how many.
        noise: variance relative to the reference spectrum, (groups, shells).
        contrast: prior of the images' contrast.
    """
    observation = Observation(particles.disc, particles.spacing, particles.groups, len(particles), contrast=contrast)
    frame = Frame(particles.size, particles.spacing, (1.0,) * particles.disc.shells)
    mean = np.mean([maps(s) for s in range(states)], axis=0)
    factor = _amplitude(particles, observation, frame, mean, noise)
    joint = np.full((len(particles), states), -np.inf)
    for first in range(0, states, _STATES):
        chunk = [factor * maps(s) for s in range(first, min(first + _STATES, states))]
        family = Classes(len(chunk), order=3, frame=frame)
        shared = {"maps": jnp.asarray(np.stack(chunk), jnp.float32), "weights": jnp.full(len(chunk), 1 / len(chunk))}
        infer = jax.jit(partial(_local, family, observation, jnp.asarray(noise, jnp.float32)))
        for batch in particles.batches(np.arange(len(particles)), min(_ROWS, len(particles))):
            keep, found = np.asarray(batch.weight) > 0, infer(shared, batch)
            with np.errstate(divide="ignore"):
                log = np.log(np.asarray(found.responsibilities, float)) + np.asarray(found.log_evidence)[:, None]
            joint[np.asarray(batch.index)[keep], first : first + len(chunk)] = log[keep] + np.log(len(chunk))
    return np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))


def _local(family: Classes, observation: Observation, noise: jax.Array, shared: dict, batch: object) -> Local:
    return exact_local(family, shared, batch, observation, noise, None)  # type: ignore[arg-type]


def _amplitude(
    particles: Particles, observation: Observation, frame: Frame, mean: np.ndarray, noise: np.ndarray
) -> float:
    """The factor that brings a map to the images' grey values, by least squares over particles spread evenly."""
    family = Classes(1, order=3, frame=frame)
    lattice = component_lattice(family)
    rows = np.unique(np.linspace(0, len(particles) - 1, min(2 * _ROWS, len(particles))).astype(int))
    batch = particles.batch(rows)
    slices, _ = component_slices(lattice, lattice.table(jnp.asarray(mean[None], jnp.float32)), batch, observation)
    found = shell_statistics(centred_images(batch, observation), slices, batch.ctf, observation.disc, ((0, 0),))
    h, gram = found.weighted(jnp.asarray(noise, jnp.float32)[batch.group])
    return float(h.sum() / (2 * gram.sum()))
