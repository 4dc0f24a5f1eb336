"""Rigid blocks of atoms that move along normal modes by screws, so that large motions bend no bond inside a block.

A mode moves each rigid block with a velocity v and an angular velocity w. Straight lines along these stretch the block;
the motion of constant v and w as the block sees them is a screw, a rotation about an axis with a translation along it
(NOLB: Hoffmann and Grudinin 2017, J. Chem. Theory Comput. 13).
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from hetmodels.imaging.rotations import from_rotvec
from hetmodels.tree import pytree

_SMALL = 1e-2  # rad^2, below which a series is more accurate


@pytree
class Screws:
    """Modes of rigid blocks as screws.

    Attributes:
        block: number of the block of each atom, (n,).
        centre: centre of each block at rest [Å], (blocks, 3).
        twist: angular velocity about the centre [rad] and velocity [Å] of each block per unit of each mode,
            (modes, blocks, 6).
    """

    block: Array
    centre: Array
    twist: Array

    @staticmethod
    def of(rest: NDArray, modes: NDArray, blocks: NDArray) -> "Screws":
        """The rigid motion of each block in each mode, by least squares where a block is not rigid in it.

        Args:
            rest: atoms [Å], (n, 3).
            modes: (modes, n, 3).
            blocks: number of the block of each atom, any integers, (n,).
        """
        block = np.unique(blocks, return_inverse=True)[1]
        count = int(block.max()) + 1
        centre, twist = np.zeros((count, 3)), np.zeros((len(modes), count, 6))
        for number in range(count):
            mine = block == number
            centre[number] = rest[mine].mean(0)
            about = rest[mine] - centre[number]
            turning = np.stack([np.cross(axis, about) for axis in np.eye(3)], axis=-1)  # (atoms, 3, 3)
            flat = turning.reshape(-1, 3)
            velocity = modes[:, mine].mean(1)
            rest_of = (modes[:, mine] - velocity[:, None]).reshape(len(modes), -1)
            spin = np.linalg.lstsq(flat, rest_of.T, rcond=1e-8)[0].T  # none of least norm about an axis of no effect
            twist[:, number] = np.concatenate([spin, velocity], axis=1)
        return Screws(jnp.asarray(block), jnp.asarray(centre), jnp.asarray(twist))

    def moved(self, rest: Array, amplitude: Array) -> Array:
        """Atoms (n, 3) moved along the modes by amplitudes (modes,), all modes at once."""
        twist = jnp.tensordot(amplitude, self.twist.astype(rest.dtype), axes=1)
        spin, velocity = twist[:, :3], twist[:, 3:]
        centre = self.centre.astype(rest.dtype)
        turned = jnp.einsum("nij,nj->ni", from_rotvec(spin)[self.block], rest - centre[self.block], precision="highest")
        return (centre + _advance(spin, velocity))[self.block] + turned


def _advance(spin: Array, velocity: Array) -> Array:
    """Where the centre goes: the integral of exp(t [w]x) v over t from 0 to 1, (blocks, 3)."""
    square = jnp.sum(spin**2, axis=-1, keepdims=True)
    small = square < _SMALL
    safe = jnp.where(small, 1.0, square)
    angle = jnp.sqrt(safe)
    half = jnp.sin(angle / 2) / (angle / 2)
    first = jnp.where(small, 0.5 - square / 24 * (1 - square / 30 * (1 - square / 56)), half**2 / 2)
    second = jnp.where(small, (1 - square / 20 * (1 - square / 42)) / 6, (1 - jnp.sin(angle) / angle) / safe)
    once = jnp.cross(spin, velocity)
    return velocity + first * once + second * jnp.cross(spin, once)
