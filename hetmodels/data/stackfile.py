"""An MRC stack (mode 2) being written: images in any order, the header with its statistics at the end."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HEADER = 1024  # bytes


class StackFile:
    """Images of one box on disk, written and read back by number.

    Args:
        path: file, replaced if it exists.
        count: number of images.
        box: image edge in pixels.
        pixel: pixel size [Å].
    """

    def __init__(self, path: Path, count: int, box: int, pixel: float) -> None:
        self.count, self.box, self.pixel = count, box, pixel
        self.file = open(path, "w+b")
        self.file.truncate(HEADER + count * self._bytes)
        self.restart()

    @property
    def _bytes(self) -> int:
        return self.box * self.box * 4

    def restart(self) -> None:
        """Forget the statistics: all images are going to be written again."""
        self.low, self.high, self.sum, self.squares = np.inf, -np.inf, 0.0, 0.0

    def put(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Write images (n, box, box) at the given numbers."""
        images = np.ascontiguousarray(images, "<f4")
        for row, image in zip(rows, images, strict=True):
            self.file.seek(HEADER + int(row) * self._bytes)
            self.file.write(image.tobytes())
        self.low, self.high = min(self.low, float(images.min())), max(self.high, float(images.max()))
        self.sum += float(images.sum(dtype=np.float64))
        self.squares += float(np.square(images, dtype=np.float64).sum())

    def get(self, start: int, stop: int) -> np.ndarray:
        """Images start … stop-1, float32 (n, box, box)."""
        self.file.seek(HEADER + start * self._bytes)
        data = self.file.read((stop - start) * self._bytes)
        return np.frombuffer(data, "<f4").reshape(-1, self.box, self.box)

    def close(self) -> None:
        """Write the header and close the file."""
        values = self.count * self.box**2
        mean = self.sum / values
        rms = np.sqrt(max(self.squares / values - mean**2, 0.0))
        edge = self.box * self.pixel
        header = bytearray(HEADER)
        struct.pack_into("<10i", header, 0, self.box, self.box, self.count, 2, 0, 0, 0, self.box, self.box, 1)
        struct.pack_into("<6f3i", header, 40, edge, edge, self.pixel, 90, 90, 90, 1, 2, 3)
        struct.pack_into("<3f2i", header, 76, self.low, self.high, mean, 0, 0)
        struct.pack_into("<i", header, 108, 20140)
        struct.pack_into("<4s4sfi80s", header, 208, b"MAP ", b"\x44\x44\0\0", rms, 1, b"hetmodels images".ljust(80))
        self.file.seek(0)
        self.file.write(header)
        self.file.close()


@contextlib.contextmanager
def stack_file(path: Path, count: int, box: int, pixel: float) -> Iterator[StackFile]:
    """A `StackFile` that is closed with its header, or left without one when an error passes."""
    file = StackFile(path, count, box, pixel)
    try:
        yield file
        file.close()
    finally:
        file.file.close()
