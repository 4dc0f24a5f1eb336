"""First guesses from the images themselves: the noise spectrum of each group and the power of the map."""

import jax.numpy as jnp
import numpy as np

from hetmodels.data.particles import Particles
from hetmodels.errors import DataError
from hetmodels.families.protocol import Frame
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.grids import Disc

_MOST = 1000
_CORNER = 0.46
_STRONG = 0.1  # of the power of the strongest shell


def first_spectra(particles: Particles) -> tuple[np.ndarray, Frame]:
    """Noise from the corners of the images, outside a circle; the map's power from what is left.

    Where the corners hold no noise (windowed or noise-free images), the reference spectrum stands for the noise.

    Args:
        particles: the data; up to 1000 images are read.

    Returns:
        Noise variance relative to the reference spectrum, (groups, shells), and the frame of the maps.
    """
    disc = particles.disc
    rows = np.unique(np.linspace(0, len(particles) - 1, min(_MOST, len(particles))).astype(int))
    batch = particles.batch(rows)
    images, ctf, group = np.asarray(batch.images), np.asarray(batch.ctf), np.asarray(batch.group)
    corners = _corner_power(images, disc) if particles.window is None else np.zeros(images.shape)
    noise = np.ones((particles.groups, disc.shells))
    signal, transfer = np.zeros(disc.shells), np.zeros(disc.shells)
    for g in np.unique(group):
        mine = group == g
        power = _shells(np.abs(images[mine]) ** 2, disc)
        level = _smoothed(_shells(corners[mine], disc), disc)
        noise[g] = np.where(level > 1e-3 * power, np.minimum(level, power), power)
        excess = np.maximum(power - noise[g], 0.02 * power)
        signal += excess * mine.sum()
        transfer += _shells(ctf[mine] ** 2, disc) * mine.sum()
    noise[:, 0] = noise[:, 1]
    frame = Frame(particles.size, particles.spacing, tuple(map(float, _filled(signal / np.maximum(transfer, 1e-12)))))
    return noise, frame


def grey_scale(maps: np.ndarray, frame: Frame) -> float:
    """Factor by which maps from elsewhere are multiplied to show as much power as the images do.

    Only the shells that hold most of the maps' power count.

    Args:
        maps: (count, N, N, N).
        frame: with the power that the images show, from `first_spectra`.

    Raises:
        DataError: if the maps are zero in the band of the images.
    """
    power = np.asarray(Ball(frame.size).power(jnp.asarray(maps, jnp.float32))).mean(0)
    pixels = np.arange(len(power)) * power
    if not pixels.max() > 0:
        raise DataError("the maps to start from are zero in the band of the images. Give maps of the particle.")
    strong = pixels > _STRONG * pixels.max()
    shell = np.flatnonzero(strong)
    return float(np.sqrt(shell @ np.asarray(frame.power)[strong] / (shell @ power[strong])))


def _corner_power(images: np.ndarray, disc: Disc) -> np.ndarray:
    """Power of each pixel's transform with the particle's circle cut out, per unit of area, (rows, pixels)."""
    line = np.arange(disc.size) - disc.size // 2
    radius = np.hypot(line[:, None], line) / disc.size
    mask = np.clip((radius - _CORNER) * disc.size / 2, 0, 1)
    cut = np.asarray(disc.forward(disc.inverse(jnp.asarray(images)) * mask))
    return np.abs(cut) ** 2 / np.mean(mask**2)


def _shells(values: np.ndarray, disc: Disc) -> np.ndarray:
    """Mean over rows and over each shell, (shells,); shell 0 takes the value of shell 1."""
    total = np.bincount(disc.shell, values.mean(0), disc.shells) / np.maximum(disc.shell_counts, 1)
    return _filled(total)


def _filled(values: np.ndarray) -> np.ndarray:
    values = np.array(values)
    values[0] = values[1]
    return np.maximum(values, 1e-12)


def _smoothed(values: np.ndarray, disc: Disc) -> np.ndarray:
    """Running mean over five shells: the cut mixes neighbouring shells anyway."""
    padded = np.pad(values, 2, mode="edge")
    return np.convolve(padded, np.full(5, 0.2), mode="valid")
