"""From pixels on disk to the stored Fourier coefficients, with as much kept in memory as was allowed."""

import dataclasses
import os
import threading

import numpy as np
import scipy.fft

from hetmodels.data.stacks import Images, check_pixels
from hetmodels.errors import UsageError
from hetmodels.imaging.grids import Disc

EDGE = 5.0  # pixels over which the image window falls to zero
CHUNK = 1 << 22  # bytes of pixels transformed at a time


@dataclasses.dataclass(frozen=True)
class Loading:
    """How images are brought in; it changes speed and memory, never a value.

    Attributes:
        cache: bytes that the packed coefficients of a set may take to stay in memory after their first reading;
            a larger set is read from disk each time.
        workers: threads of the Fourier transform; 0 takes every processor that this process may use.
    """

    cache: int = 1 << 30
    workers: int = 0

    @property
    def threads(self) -> int:
        """Number of threads of the Fourier transform."""
        return self.workers or len(os.sched_getaffinity(0))


class InMemory:
    """Images given as one array (N, D, D), with the reading interface of `Stacks`."""

    def __init__(self, images: np.ndarray) -> None:
        """Keep the array as it is; it is converted and checked when read."""
        if images.ndim != 3 or images.shape[1] != images.shape[2]:
            raise UsageError(f"images: expected an array (N, D, D) of square images, got shape {images.shape}.")
        self.array = images
        self.box = images.shape[1]
        self.sizes = (images.nbytes,)

    def __len__(self) -> int:
        return len(self.array)

    def name(self, index: int) -> str:
        """`000012@array`, counted from 1."""
        return f"{index + 1:06d}@array"

    def read(self, index: np.ndarray) -> np.ndarray:
        """Images by number, float32 (n, D, D); see `Stacks.read`."""
        images = np.asarray(self.array[index], np.float32)
        check_pixels(images, index, self)
        return images


def pack(source: Images, pixel: float, sign: int, box: int | None, window: float | None, loading: Loading) -> "Packed":
    """The coefficients of a set, after checking box and window.

    Args:
        source: the images.
        pixel: their pixel size [Å].
        sign: factor on all images.
        box: even box to which they are Fourier-cropped, or None.
        window: diameter of the soft window, [Å] or a fraction of the box if at most 1, or None.
        loading: cache and threads.

    Raises:
        UsageError: if box or window do not fit the images.
    """
    full = source.box
    if box is not None and (box % 2 or not 4 <= box <= full):
        raise UsageError(f"--box: must be even and lie in 4 … {full}, the box of the images, got {box}.")
    diameter = None
    if window is not None:
        diameter = window * full if window <= 1 else window / pixel
        if not 0 < diameter <= full:
            raise UsageError(
                f"--window: the diameter must be a positive fraction up to 1, or at most the box "
                f"({full * pixel:.6g} Å), got {window}."
            )
    return Packed(source, Disc(box or full), sign, diameter, loading)


class Packed:
    """Orthonormal Fourier coefficients of a set of images at the pixels of a disc.

    A disc of a smaller box than the images' is a Fourier crop: coefficients are kept, not rescaled.

    Attributes:
        source: the images.
        disc: the pixels kept.
        sign: factor on all images, -1 where protein is dark.
        window: diameter of the soft circular window in pixels of the images, or None.
        loading: cache and threads.
    """

    def __init__(self, source: Images, disc: Disc, sign: int, window: float | None, loading: Loading) -> None:
        """Prepare indices and window; nothing is read."""
        self.source, self.disc, self.sign, self.window, self.loading = source, disc, sign, window, loading
        box = source.box
        x, y = disc.index.T
        self._flat = (y % box) * (box // 2 + 1) + x
        turns = ((x + y) * (box // 2) % box) / box
        centre = sign * np.exp(2j * np.pi * turns)
        self._centre = np.rint(centre.real).astype(np.float32) if box % 2 == 0 else centre.astype(np.complex64)
        self._window = None if window is None else soft_window(box, window)
        self._cache: np.ndarray | None = None
        self._known = np.zeros(0, bool)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the packed coefficients of the whole set."""
        return len(self.source) * self.disc.pixels * 8

    @property
    def resident(self) -> bool:
        """Whether coefficients stay in memory after their first reading."""
        return self.nbytes <= self.loading.cache

    def read(self, index: np.ndarray) -> np.ndarray:
        """Coefficients by image number, complex64 (n, pixels)."""
        index = np.asarray(index, np.int64)
        if not self.resident:
            return self._transformed(index)
        with self._lock:
            if self._cache is None:
                self._cache = np.empty((len(self.source), self.disc.pixels), np.complex64)
                self._known = np.zeros(len(self.source), bool)
            new = np.unique(index[~self._known[index]])
            if len(new):
                self._cache[new] = self._transformed(new)
                self._known[new] = True
        return self._cache[index]

    def _transformed(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), self.disc.pixels), np.complex64)
        box = self.source.box
        step = max(1, CHUNK // (4 * box * box))
        order = np.argsort(index, kind="stable")
        for start in range(0, len(index), step):
            places = order[start : start + step]
            images = self.source.read(index[places])
            if self._window is not None:
                images *= self._window
            half = scipy.fft.rfft2(images, norm="ortho", workers=self.loading.threads, overwrite_x=True)
            out[places] = np.take(half.reshape(len(places), -1), self._flat, axis=1) * self._centre
        return out


class LowBand(Packed):
    """The coefficients that a Fourier crop of another set to a smaller box keeps: the first ones of its disc.

    Read through the other set, so that what is in memory serves both.
    """

    def __init__(self, whole: Packed, box: int) -> None:
        """Narrow the band of `whole`."""
        super().__init__(whole.source, Disc(box), whole.sign, whole.window, whole.loading)
        self._whole = whole

    @property
    def resident(self) -> bool:
        """Whether the other set's coefficients stay in memory."""
        return self._whole.resident

    def read(self, index: np.ndarray) -> np.ndarray:
        """Coefficients by image number, complex64 (n, pixels)."""
        return self._whole.read(index)[:, : self.disc.pixels]


def soft_window(box: int, diameter: float) -> np.ndarray:
    """1 inside a circle about box//2, then a cosine fall to 0 over EDGE pixels, float32 (box, box)."""
    x = np.arange(box) - box // 2
    beyond = np.hypot(x[:, None], x) - diameter / 2
    return (0.5 + 0.5 * np.cos(np.pi * np.clip(beyond / EDGE, 0, 1))).astype(np.float32)
