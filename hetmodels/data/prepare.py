"""From raw coefficients to what the likelihood compares: corrected, whitened, and with the transfer that belongs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc

SMALLEST = 1e-3  # |CTF| below which premultiplied images hold no information


@dataclasses.dataclass(frozen=True)
class Correction:
    """What was done to the images before they came here, and has to be accounted for.

    Attributes:
        flipped: phases were flipped, so that the images carry |CTF|.
        premultiplied: images were multiplied by their CTF; it is divided out where it is not near zero, and image
            and transfer are zero elsewhere.
        aberrated: antisymmetric aberrations are present; their phase is removed from the images.
        gain: factor of a Fourier crop from box D to D', (D/D')^2: coefficients are kept, so they are this much
            larger than a slice of the density sampled on D' voxels of a D/D' Å.
    """

    flipped: bool = False
    premultiplied: bool = False
    aberrated: bool = False
    gain: float = 1.0


@functools.partial(jax.jit, static_argnames=("disc", "spacing", "correction"))
def prepare(
    images: Array, ctf: Ctf, group: Array, root: Array, *, disc: Disc, spacing: float, correction: Correction
) -> tuple[Array, Array]:
    """Correct and whiten.

    Args:
        images: raw coefficients, complex (rows, pixels).
        ctf: contrast transfer of the rows.
        group: optics group, (rows,).
        root: root of the reference spectrum, (groups, shells).
        disc: the pixels.
        spacing: pixel size of the box of the disc [Å].
        correction: what to account for.

    Returns:
        Whitened images, complex (rows, pixels), and the transfer divided by the same root, real (rows, pixels).
    """
    points = disc.grid(spacing).points
    transfer = ctf.transfer(points)
    if correction.flipped:
        transfer = jnp.abs(transfer)
    if correction.premultiplied:
        informative = jnp.abs(transfer) > SMALLEST
        images = jnp.where(informative, images / jnp.where(informative, transfer, 1), 0)
        transfer = jnp.where(informative, transfer, 0)
    if correction.aberrated:
        images = images * jnp.exp(-1j * ctf.aberration(points)).astype(images.dtype)
    white = (1 / root)[group][:, disc.shell]
    return images * white, (transfer * (white * correction.gain)).astype(white.dtype)
