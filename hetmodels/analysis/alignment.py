"""Bring one map onto another: rotation, shift and, if asked, the other hand.

A moving map M becomes W(r) = M(Qᵀ (r - t)): its content is turned by Q about the box centre, then moved by t. With
the other hand, M(x, y, -z) takes the place of M. In Fourier space W^(ξ) = exp(-2πi ξ·t) M^(Qᵀ ξ).
"""

import dataclasses

import numpy as np
import scipy.fft
import scipy.ndimage
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from hetmodels.analysis import fourier
from hetmodels.errors import DataError

FLIP = np.diag([1.0, 1.0, -1.0])


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How to move a map.

    Attributes:
        rotation: Q (3, 3), acting on (x, y, z).
        shift: t (x, y, z) [Å].
        mirrored: whether the hand is changed first.
        correlation: with the reference, over the band used.
        other: correlation that the other hand reaches at its own best place; NaN if it was not tried.
    """

    rotation: np.ndarray
    shift: np.ndarray
    mirrored: bool
    correlation: float
    other: float = float("nan")

    def apply(self, volume: np.ndarray, spacing: float) -> np.ndarray:
        """The moved map, by cubic splines; 0 where it comes from outside the box."""
        source = mirror(volume) if self.mirrored else volume
        inward = self.rotation.T[::-1, ::-1]  # the same matrix for index order z, y, x
        centre = np.full(3, volume.shape[0] // 2)
        offset = centre - inward @ (centre + self.shift[::-1] / spacing)
        return scipy.ndimage.affine_transform(source, inward, offset, order=3).astype(volume.dtype)


def mirror(volume: np.ndarray) -> np.ndarray:
    """The map with the other hand, V(x, y, -z) about the box centre; for even boxes the plane z = -N/2 stays."""
    flipped = volume[::-1]
    return np.roll(flipped, 1, axis=0) if volume.shape[0] % 2 == 0 else flipped


class _Band:
    """The transform of one map inside |ξ| <= limit, to be read at any frequency."""

    def __init__(self, volume: np.ndarray, limit: int) -> None:
        n = volume.shape[0]
        before = n - n // 2
        padded = np.pad(np.asarray(volume, np.float32), [(before, n - before)] * 3)
        full = scipy.fft.fftshift(scipy.fft.fftn(scipy.fft.ifftshift(padded)))
        self.reach = min(2 * limit + 6, n - 1)
        near = full[(slice(n - self.reach, n + self.reach + 1),) * 3].astype(np.complex128)
        self.values = scipy.ndimage.spline_filter(near, order=3, output=np.complex128)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Values at frequencies (x, y, z) in Fourier pixels of the unpadded box, (…, 3) -> (…)."""
        index = np.moveaxis(2.0 * points[..., ::-1] + self.reach, -1, 0)
        return scipy.ndimage.map_coordinates(self.values, index, order=3, prefilter=False)


def _points(limit: int) -> np.ndarray:
    """Integer frequencies (x, y, z) of the half-space x >= 0 with 1 <= |ξ| <= limit, (points, 3)."""
    k = np.arange(-limit, limit + 1)
    z, y, x = np.meshgrid(k, k, k, indexing="ij")
    half = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    keep = half & (x**2 + y**2 + z**2 <= limit**2)
    return np.stack([x[keep], y[keep], z[keep]], axis=1)


def _score(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.conj() * b).real.sum() / np.sqrt((np.abs(a) ** 2).sum() * (np.abs(b) ** 2).sum()))


def _search(reference: _Band, moving: _Band, limit: int, rotations: np.ndarray, keep: int) -> list[np.ndarray]:
    """The best rotations with their best shift by cross-correlation: (rotation vector, shift [1/N box]) rows."""
    points, m = _points(limit), 4 * limit
    fixed = reference.at(points)
    scores, shifts = np.empty(len(rotations)), np.empty((len(rotations), 3))
    cross = np.zeros((m, m, m // 2 + 1), np.complex64)
    place = (points[:, 2] % m, points[:, 1] % m, points[:, 0])
    mirrored = points[:, 0] == 0
    partner = (-points[mirrored, 2] % m, -points[mirrored, 1] % m, points[mirrored, 0])
    for i, q in enumerate(rotations):
        turned = moving.at(points @ q)
        product = fixed * turned.conj()
        cross[place], cross[partner] = product, product[mirrored].conj()
        overlap = scipy.fft.irfftn(cross, s=(m, m, m))
        best = np.unravel_index(np.argmax(overlap), overlap.shape)
        scores[i] = overlap[best] / np.sqrt((np.abs(turned) ** 2).sum())
        shifts[i] = (np.array(best[::-1]) + m // 2) % m - m // 2
    order = np.argsort(-scores)[:keep]
    vectors = Rotation.from_matrix(rotations[order]).as_rotvec()
    return [np.concatenate([v, s / m]) for v, s in zip(vectors, shifts[order], strict=True)]


def _refine(reference: _Band, moving: _Band, limit: int, start: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares in rotation vector and shift (fraction of the box), the scale eliminated."""
    points = _points(limit)
    fixed = reference.at(points)
    fixed = fixed / np.linalg.norm(fixed)
    origin = Rotation.from_rotvec(start[:3])
    steps = np.diag([1e-3] * 3 + [1e-4] * 3)

    def place(x: np.ndarray) -> np.ndarray:
        return np.concatenate([(Rotation.from_rotvec(x[:3]) * origin).as_rotvec(), start[3:] + x[3:]])

    def moved(x: np.ndarray) -> np.ndarray:
        pose = place(x)
        turned = moving.at(points @ Rotation.from_rotvec(pose[:3]).as_matrix())
        return turned * np.exp(-2j * np.pi * (points @ pose[3:]))

    def residual(x: np.ndarray) -> np.ndarray:
        value = moved(x)
        rest = fixed - value * ((value.conj() * fixed).real.sum() / (np.abs(value) ** 2).sum())
        return np.concatenate([rest.real, rest.imag])

    def slopes(x: np.ndarray) -> np.ndarray:
        return np.stack([(residual(x + h) - residual(x - h)) / (2 * h.sum()) for h in steps], axis=1)

    fit = least_squares(residual, np.zeros(6), slopes, x_scale="jac", max_nfev=30)
    return place(fit.x), _score(fixed, moved(fit.x))


def align(
    moving: np.ndarray,
    reference: np.ndarray,
    spacing: float,
    *,
    hands: bool = False,
    order: int = 2,
    coarse: int = 6,
    fine: int = 16,
    starts: int = 8,
) -> Alignment:
    """Find the rotation and shift (and hand) that bring a map onto a reference.

    All rotations of a uniform grid are tried inside |ξ| <= coarse, with every shift by cross-correlation; the best
    are refined by least squares at growing bands up to |ξ| <= fine.

    Args:
        moving: map (N, N, N).
        reference: map (N, N, N).
        spacing: voxel size of both [Å].
        hands: try the mirrored map too and keep the better.
        order: HEALPix order of the rotation grid (30° / 2^order steps).
        coarse: band of the search [Fourier pixels].
        fine: band of the last refinement [Fourier pixels].
        starts: rotations of the search that are refined.

    Raises:
        DataError: if boxes differ or a map is constant.
    """
    from hetmodels.imaging.rotations import healpix_grid

    size = fourier.check_map(reference, "reference map").shape[0]
    if fourier.check_map(moving, "moving map").shape[0] != size:
        raise DataError(f"align: both maps must have the same box, found {moving.shape[0]} and {size} voxels.")
    if moving.std() == 0 or reference.std() == 0:
        raise DataError("align: a constant map has no orientation. Is one of the maps empty?")
    fine = min(fine, (size - 1) // 2)
    coarse, box = min(coarse, fine), min(size, 2 * fine + 2)
    moving, reference = fourier.crop(moving, box), fourier.crop(reference, box)
    rotations, target = np.asarray(healpix_grid(order), float), _Band(reference, fine)

    def fitted(mirrored: bool) -> tuple[float, np.ndarray, bool]:
        band = _Band(mirror(moving) if mirrored else moving, fine)
        tried = [_refine(target, band, coarse, x) for x in _search(target, band, coarse, rotations, starts)]
        x = max(tried, key=lambda f: f[1])[0]
        for limit in sorted({min(2 * coarse, fine), fine}):
            x, score = _refine(target, band, limit, x)
        return score, x, mirrored

    found = sorted((fitted(h) for h in ((False, True) if hands else (False,))), key=lambda f: f[0])
    score, x, mirrored = found[-1]
    other = found[0][0] if hands else float("nan")
    return Alignment(Rotation.from_rotvec(x[:3]).as_matrix(), x[3:] * size * spacing, mirrored, score, other)
