"""Projections for simulated data, made by other means than the slices that fit them.

Gaussians are projected analytically: on the rectangular Fourier grid of an image an isotropic Gaussian is a product
of a factor in x and a factor in y, so that an image is one small matrix product. A map is read from its transform on
a three times padded grid with prefiltered cubic splines, while `hetmodels.volumes.voxels` reads a twice padded one
without a prefilter, divided by the transform of its kernel.

Both give the orthonormal transform, in the layout of `rfft2`, of the z-sum of the density on a box of `box` pixels
of `pixel` Å; rows and columns at the Nyquist frequency are zero.
"""

from collections.abc import Callable

import jax
import numpy as np
import scipy.fft
import scipy.ndimage

from hetmodels.data.maps import Map, cubed
from hetmodels.volumes.gaussians import Gaussians

PADDING = 3
MARGIN = 12  # planes kept beyond the half space, for the spline prefilter
CELLS = 4_000_000  # Gaussians x frequencies of the images made at a time

_density = jax.jit(Gaussians.density, static_argnums=(1, 2))  # compiled once for all states


class GaussianProjector:
    """Analytic projections of a sum of Gaussians.

    Args:
        volume: the density.
        box: image edge in pixels.
        pixel: pixel size [Å].
    """

    def __init__(self, volume: Gaussians, box: int, pixel: float) -> None:
        self.volume, self.box, self.pixel = volume, box, pixel
        self.centres = np.asarray(volume.centres, np.float64)
        self.waves = np.arange((box - 1) // 2 + 1, dtype=np.float32)
        k = self.waves / (box * pixel)
        widths = np.asarray(volume.widths, np.float64)
        self.envelope = np.exp(-2 * (np.pi * widths[:, None] * k) ** 2).astype(np.float32)
        self.scale = (np.asarray(volume.weights, np.float64) / (box * pixel**3)).astype(np.float32)

    def __call__(self, rotations: np.ndarray) -> np.ndarray:
        """Slices for matrices A (n, 3, 3): complex64 (n, box, box//2 + 1)."""
        images = np.zeros((len(rotations), self.box, self.box // 2 + 1), np.complex64)
        step = max(1, CELLS // self.envelope.size)
        for start in range(0, len(rotations), step):
            part = slice(start, start + step)
            self._fill(images[part], rotations[part])
        return images

    def _fill(self, images: np.ndarray, rotations: np.ndarray) -> None:
        last = len(self.waves) - 1
        seen = self.centres @ np.asarray(rotations, np.float64)[:, :2].transpose(0, 2, 1) / (self.box * self.pixel)
        x, y = (self._wave(seen[..., axis].astype(np.float32)) for axis in (0, 1))
        y *= self.scale[:, None]
        upper = y.transpose(0, 2, 1) @ x
        images[:, : last + 1, : last + 1] = upper
        images[:, self.box - last :, : last + 1] = np.conj(y[..., :0:-1]).transpose(0, 2, 1) @ x

    def _wave(self, position: np.ndarray) -> np.ndarray:
        """exp(-2 pi i k x) times the Gaussian's transform along one axis, (n, Gaussians, frequencies)."""
        cycles = position[..., None] * self.waves
        angle = (cycles - np.rint(cycles)) * np.float32(2 * np.pi)
        wave = np.empty(angle.shape, np.complex64)
        wave.real = np.cos(angle) * self.envelope
        wave.imag = np.sin(angle) * -self.envelope
        return wave

    def density(self) -> np.ndarray:
        """The density on the same box, [z, y, x]."""
        return np.asarray(_density(self.volume, self.box, self.pixel))


class MapProjector:
    """Projections of a map, read from its three times padded transform with prefiltered cubic splines.

    Args:
        volume: the map; centred at n//2 of each axis.
        box: image edge in pixels.
        pixel: pixel size [Å].
    """

    def __init__(self, volume: Map, box: int, pixel: float) -> None:
        values = cubed(volume.values)
        size = values.shape[0]
        self.box, self.pixel, self.spacing = box, pixel, volume.spacing
        self.padded = PADDING * size
        before = self.padded // 2 - size // 2
        space = np.pad(values.astype(np.float32), [(before, self.padded - size - before)] * 3)
        half = scipy.fft.rfftn(scipy.fft.ifftshift(space), overwrite_x=True)
        table = _with_margins(half, self.padded)
        self.parts = [_prefiltered(np.ascontiguousarray(part)) for part in (table.real, table.imag)]

    def __call__(self, rotations: np.ndarray) -> np.ndarray:
        """Slices for matrices A (n, 3, 3): complex64 (n, box, box//2 + 1)."""
        kx, ky = np.meshgrid(*self._frequencies(2)[::-1])
        points = np.stack([kx, ky], axis=-1)
        slices = np.empty((len(rotations), *kx.shape), np.complex64)
        for row, a in zip(slices, np.asarray(rotations, np.float64), strict=True):
            row[:] = self._sample(points @ a[:2])
        slices *= np.float32(self.spacing**3 / (self.box * self.pixel**3))
        return _without_nyquist(slices, self.box)

    def density(self) -> np.ndarray:
        """The map up to its Nyquist sphere on the same box, [z, y, x]."""
        kz, ky, kx = np.meshgrid(*self._frequencies(3), indexing="ij")
        half = np.stack([self._sample(np.stack(k, axis=-1)) for k in zip(kx, ky, kz, strict=True)])
        half = _without_nyquist(half * np.float32((self.spacing / self.pixel) ** 3), self.box)
        if self.box % 2 == 0:
            half[self.box // 2] = 0
        return scipy.fft.fftshift(scipy.fft.irfftn(half, s=(self.box,) * 3)).astype(np.float32)

    def _frequencies(self, dimensions: int) -> list[np.ndarray]:
        """[1/Å] along each axis of a real transform, x last."""
        whole = np.fft.fftfreq(self.box, self.pixel)
        return [whole] * (dimensions - 1) + [np.fft.rfftfreq(self.box, self.pixel)]

    def _sample(self, points: np.ndarray) -> np.ndarray:
        """Transform of the map's values at frequencies (kx, ky, kz) [1/Å]; 0 beyond the map's own Nyquist."""
        nodes = points * (self.padded * self.spacing)
        flip = nodes[..., 0] < 0
        nodes[flip] *= -1
        where = np.stack([nodes[..., 2], nodes[..., 1], nodes[..., 0] + MARGIN])
        inside = (nodes**2).sum(-1) < (self.padded / 2) ** 2
        where *= inside
        real, imaginary = (
            scipy.ndimage.map_coordinates(part, where, order=3, mode="grid-wrap", prefilter=False)
            for part in self.parts
        )
        return (real + 1j * np.where(flip, -imaginary, imaginary)) * inside


def _with_margins(half: np.ndarray, padded: int) -> np.ndarray:
    """Add planes at kx < 0 and beyond the half space, from the conjugate partners."""
    partner = np.conj(np.roll(half[::-1, ::-1], 1, axis=(0, 1)))
    low = partner[..., MARGIN:0:-1]
    beyond = padded - np.arange(padded // 2 + 1, padded // 2 + 1 + MARGIN)
    return np.concatenate([low, half, partner[..., beyond]], axis=2)


def _prefiltered(part: np.ndarray) -> np.ndarray:
    """Cubic spline coefficients; the first two axes are periodic."""
    for axis, mode in enumerate(("grid-wrap", "grid-wrap", "mirror")):
        part = scipy.ndimage.spline_filter1d(part, 3, axis, np.float32, mode)
    return part


def _without_nyquist(half: np.ndarray, box: int) -> np.ndarray:
    """Put zeros at the Nyquist frequency of y and x, (…, box, box//2 + 1)."""
    if box % 2 == 0:
        half[..., box // 2, :] = 0
        half[..., -1] = 0
    return half.astype(np.complex64)


def projector(volume: Gaussians | Map, box: int, pixel: float) -> GaussianProjector | MapProjector:
    """The projector that serves a volume."""
    kinds: dict[type, Callable] = {Gaussians: GaussianProjector, Map: MapProjector}
    return kinds[type(volume)](volume, box, pixel)
