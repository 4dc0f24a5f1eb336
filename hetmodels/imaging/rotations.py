"""Rotations: RELION's Euler angles, tangent vectors, quaternions, distances, and even grids on SO(3).

A rotation is the matrix A that takes a point r of the map's frame to A r in the image's frame; the image sums over
the third coordinate, so that the slice is sampled at (kx, ky, 0) @ A.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

_TINY = 1e-3  # squared angle below which power series replace quotients; their remainder is below 1e-16
_SPIRAL = 1.533751168755204288118041  # the real root of psi^4 = psi + 4


def from_euler(rot: ArrayLike, tilt: ArrayLike, psi: ArrayLike) -> Array:
    """Rotation matrices of RELION's angles: A = Rz(psi) Ry(tilt) Rz(rot), each turning the frame, not the point.

    Args:
        rot: first angle, about z [rad], any shape (…).
        tilt: second angle, about the new y [rad].
        psi: third angle, in the image plane [rad].

    Returns:
        Rotation matrices, (…, 3, 3).

    >>> from_euler(0.0, 0.0, np.pi / 2).round().astype(int).tolist()
    [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]
    """
    rot, tilt, psi = jnp.broadcast_arrays(*(jnp.asarray(angle) for angle in (rot, tilt, psi)))
    entries = _euler_entries(*(f(angle) for angle in (rot, tilt, psi) for f in (jnp.cos, jnp.sin)))
    return jnp.stack(entries, axis=-1).reshape(*rot.shape, 3, 3)


def _euler_entries(cr: Any, sr: Any, ct: Any, st: Any, cp: Any, sp: Any) -> list[Any]:
    """The nine entries of A, row by row, from the cosines and sines of rot, tilt and psi."""
    return [
        *(cp * ct * cr - sp * sr, cp * ct * sr + sp * cr, -cp * st),
        *(-sp * ct * cr - cp * sr, -sp * ct * sr + cp * cr, sp * st),
        *(st * cr, st * sr, ct),
    ]


def to_euler(rotation: ArrayLike) -> tuple[Array, Array, Array]:
    """RELION's angles of rotation matrices; `from_euler` of them gives the matrices back, also at tilt 0 and pi.

    Args:
        rotation: rotation matrices, (…, 3, 3).

    Returns:
        rot, tilt and psi [rad], each (…); tilt lies in 0 … pi, the others in -pi … pi.
    """
    a = jnp.asarray(rotation)
    rot = jnp.arctan2(a[..., 2, 1], a[..., 2, 0])
    tilt = jnp.arctan2(jnp.hypot(a[..., 2, 0], a[..., 2, 1]), a[..., 2, 2])
    c, s = jnp.cos(rot), jnp.sin(rot)
    psi = jnp.arctan2(c * a[..., 0, 1] - s * a[..., 0, 0], c * a[..., 1, 1] - s * a[..., 1, 0])
    return rot, tilt, psi


def from_rotvec(vector: ArrayLike) -> Array:
    """Exponential map: the rotation by |w| about w, exp([w]x), smooth everywhere.

    Args:
        vector: tangent vectors w [rad], (…, 3).

    Returns:
        Rotation matrices, (…, 3, 3).
    """
    w = jnp.asarray(vector)
    square = jnp.sum(w * w, axis=-1)
    small = square < _TINY
    angle = jnp.sqrt(jnp.where(small, 1, square))
    first = jnp.where(small, 1 - square / 6 * (1 - square / 20 * (1 - square / 42)), jnp.sin(angle) / angle)
    half = jnp.where(small, 1 - square / 24 * (1 - square / 80 * (1 - square / 168)), jnp.sin(angle / 2) * 2 / angle)
    second = half**2 / 2
    x, y, z = w[..., 0], w[..., 1], w[..., 2]
    zero = jnp.zeros_like(x)
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*w.shape, 3)
    eye = jnp.eye(3, dtype=w.dtype)
    outer = w[..., :, None] * w[..., None, :] - square[..., None, None] * eye
    return eye + first[..., None, None] * cross + second[..., None, None] * outer


def to_rotvec(rotation: ArrayLike) -> Array:
    """Logarithm: the tangent vector w [rad], (…, 3), |w| <= pi, of rotation matrices (…, 3, 3)."""
    q = to_quaternion(rotation)
    real, vector = q[..., 0], q[..., 1:]
    square = jnp.sum(vector * vector, axis=-1)
    small = square < _TINY * real**2
    size = jnp.sqrt(jnp.where(small, 1, square))
    safe = jnp.where(small, real, 1)
    ratio = square / safe**2
    series = (1 - ratio * (1 / 3 - ratio * (1 / 5 - ratio * (1 / 7 - ratio / 9)))) / safe
    return vector * (2 * jnp.where(small, series, jnp.arctan2(size, real) / size))[..., None]


def from_quaternion(quaternion: ArrayLike) -> Array:
    """Rotation matrices (…, 3, 3) of quaternions (…, 4), real part first, of any length but zero."""
    q = jnp.asarray(quaternion)
    q = q / jnp.linalg.norm(q, axis=-1, keepdims=True)
    entries = _quaternion_entries(*(q[..., i] for i in range(4)))
    return jnp.stack(entries, axis=-1).reshape(*q.shape[:-1], 3, 3)


def _quaternion_entries(w: Any, x: Any, y: Any, z: Any) -> list[Any]:
    """The nine matrix entries, row by row, of unit quaternions."""
    return [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]


def to_quaternion(rotation: ArrayLike) -> Array:
    """Unit quaternions (…, 4), real part first and not negative, of rotation matrices (…, 3, 3)."""
    a = jnp.asarray(rotation)
    xx, yy, zz = a[..., 0, 0], a[..., 1, 1], a[..., 2, 2]
    wx, wy, wz = (a[..., j, i] - a[..., i, j] for i, j in ((1, 2), (2, 0), (0, 1)))
    xy, yz, zx = (a[..., j, i] + a[..., i, j] for i, j in ((0, 1), (1, 2), (2, 0)))
    four = [
        [1 + xx + yy + zz, wx, wy, wz],
        [wx, 1 + xx - yy - zz, xy, zx],
        [wy, xy, 1 - xx + yy - zz, yz],
        [wz, zx, yz, 1 - xx - yy + zz],
    ]
    outer = jnp.stack([jnp.stack(row, axis=-1) for row in four], axis=-2)  # 4 q q^T; its best row is divided
    best = jnp.argmax(jnp.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    row = jnp.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    q = row / jnp.linalg.norm(row, axis=-1, keepdims=True)
    return jnp.where(q[..., :1] < 0, -q, q)


def geodesic(first: ArrayLike, second: ArrayLike) -> Array:
    """Angle [rad] of the rotation between two rotations, (…, 3, 3) each: accurate near 0 and near pi."""
    between = jnp.einsum("...ij,...kj->...ik", first, second, precision=jax.lax.Precision.HIGHEST)
    q = to_quaternion(between)
    return 2 * jnp.arctan2(jnp.linalg.norm(q[..., 1:], axis=-1), q[..., 0])


def uniform(key: Array, count: int) -> Array:
    """Rotations drawn from the Haar measure, (count, 3, 3): normalised normals are uniform quaternions."""
    return from_quaternion(jax.random.normal(key, (count, 4)))


def healpix_directions(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the 12 * 4^order equal areas of the sphere, in HEALPix's nested order.

    The children of direction p at the next order are 4p … 4p + 3. Source: Górski et al. 2005, section 5.

    Returns:
        rot and tilt [rad]: longitude and colatitude, each (12 * 4^order,).
    """
    side = 2**order
    face, within = np.divmod(np.arange(12 * side**2), side**2)
    x, y = (sum(((within >> (2 * bit + odd)) & 1) << bit for bit in range(order)) for odd in (0, 1))
    ring = (2 + face // 4) * side - x - y - 1  # 1 … 4 side - 1, from the north pole
    width = np.minimum(np.minimum(ring, 4 * side - ring), side)  # a quarter of the ring's pixels
    cap = 1 - width**2 / (3 * side**2)
    z = np.select([ring < side, ring > 3 * side], [cap, -cap], 4 / 3 - 2 * ring / (3 * side))
    column = np.where(face // 4 == 1, 2 * (face % 4), 2 * (face % 4) + 1)
    rot = np.pi / (4 * width) * (column * width + x - y)
    return np.mod(rot, 2 * np.pi), np.arccos(z)


def healpix_grid(order: int) -> np.ndarray:
    """RELION's orientation grid: HEALPix directions times psi steps of 60 deg / 2^order.

    Args:
        order: HEALPix order; 1 … 5 mean steps of 30, 15, 7.5, 3.75 and 1.875 degrees.

    Returns:
        Rotation matrices, float64 (72 * 8^order, 3, 3); psi varies fastest, directions are nested.

    Raises:
        ValueError: if the order is negative.

    >>> healpix_grid(1).shape
    (576, 3, 3)
    """
    if order < 0:
        raise ValueError(f"healpix_grid: the order must not be negative, got {order}.")
    rot, tilt = healpix_directions(order)
    steps = 6 * 2**order
    rot, tilt, psi = np.repeat(rot, steps), np.repeat(tilt, steps), np.tile(np.arange(steps), len(rot))
    angles = (rot, tilt, 2 * np.pi * psi / steps)
    entries = _euler_entries(*(f(angle) for angle in angles for f in (np.cos, np.sin)))
    return np.stack(entries, axis=-1).reshape(-1, 3, 3)


def super_fibonacci(count: int) -> np.ndarray:
    """Any number of evenly spread rotations: super-Fibonacci spirals on the unit quaternions.

    Source: Alexa, "Super-Fibonacci Spirals: fast, low-discrepancy sampling of SO(3)", CVPR 2022.

    Returns:
        Rotation matrices, float64 (count, 3, 3).

    Raises:
        ValueError: if count is not positive.
    """
    if count < 1:
        raise ValueError(f"super_fibonacci: the number of rotations must be positive, got {count}.")
    step = np.arange(count) + 0.5
    inner, outer = np.sqrt(step / count), np.sqrt(1 - step / count)
    alpha, beta = 2 * np.pi * step / np.sqrt(2), 2 * np.pi * step / _SPIRAL
    spiral = (inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta))
    return np.stack(_quaternion_entries(*spiral), axis=-1).reshape(-1, 3, 3)
