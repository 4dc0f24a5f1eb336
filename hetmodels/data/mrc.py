"""The header of an MRC stack: what it says, and whether the file agrees."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from hetmodels.errors import DataError

HEADER = 1024  # bytes
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
REFUSED = {3: "complex integers", 4: "complex numbers", 16: "colours", 101: "4-bit integers"}
LARGEST = 1 << 17  # pixels along an edge; more means that the bytes are read in the wrong order or are no header


@dataclasses.dataclass(frozen=True)
class Header:
    """Where the images of one MRC file lie.

    Attributes:
        path: the file.
        count: images in the stack (sections).
        box: edge of the square images in pixels.
        dtype: pixel type with its byte order.
        offset: bytes before the first image, extended header included.
        spacing: pixel size that the header claims [Å], 0 if none; tables are believed before it.
        note: something odd but harmless about the file, or an empty string.
    """

    path: Path
    count: int
    box: int
    dtype: np.dtype
    offset: int
    spacing: float
    note: str = ""

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.box * self.box * self.dtype.itemsize

    def memmap(self) -> np.ndarray:
        """The images as a read-only memory map, (count, box, box)."""
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.count, self.box, self.box))


def read_header(path: Path) -> Header:
    """Read and check the header of an MRC stack; single images count as stacks of one.

    Byte order is taken from the numbers themselves where the machine stamp is missing or wrong. The layout is
    that of MRC2014 (Cheng et al., J. Struct. Biol. 192, 2015).

    Raises:
        DataError: if the file is no MRC file, holds no real-valued square images, or its length differs from what
            the header says by an image or more.
    """
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            raw = file.read(HEADER)
    except OSError as error:
        raise DataError(f"{path}: the image file cannot be read ({error.strerror}).") from error
    if len(raw) < HEADER:
        raise DataError(f"{path}: an MRC file starts with {HEADER} bytes of header, this one has {size} bytes in all.")
    return _checked(path, raw, size)


def _checked(path: Path, raw: bytes, size: int) -> Header:
    words, order = _words(path, raw)
    nx, ny, count, mode = (int(w) for w in words[:4])
    if mode not in MODES:
        raise DataError(f"{path}: pixels of MRC mode {mode} ({REFUSED[mode]}) are not images; write them as float32.")
    if nx != ny:
        raise DataError(f"{path}: particle images must be square, these are {nx} x {ny} pixels; extract them again.")
    extended = int(words[23])
    cell = float(np.frombuffer(raw, order + "f4", 1, 40)[0])
    spacing = cell / words[7] if words[7] > 0 and np.isfinite(cell) and cell > 0 else 0.0
    header = Header(path, count, nx, np.dtype(order + MODES[mode]), HEADER + extended, float(spacing))
    surplus = size - header.offset - count * header.image_bytes
    if surplus < 0:
        held = max(0, size - header.offset) / header.image_bytes
        raise DataError(
            f"{path}: the stack is truncated or its header lies about its length: the header says {count} images of "
            f"{nx} x {nx} pixels ({size - surplus} bytes), the file has {size} bytes, room for {held:.6g} images. "
            "Copy the file again, or correct its header."
        )
    if surplus >= header.image_bytes:
        raise DataError(
            f"{path}: the header lies about the file's length: it says {count} images of {nx} x {nx} pixels "
            f"({size - surplus} bytes), the file has {size} bytes. Correct the header, or write the stack again."
        )
    if surplus:
        return dataclasses.replace(header, note=f"{path}: {surplus} bytes after the last image are ignored.")
    return header


def _words(path: Path, raw: bytes) -> tuple[np.ndarray, str]:
    """The header as 32-bit integers, and the byte order in which they make sense."""
    stamped = ">" if raw[212:213] == b"\x11" else "<"
    for order in (stamped, "<" if stamped == ">" else ">"):
        words = np.frombuffer(raw, order + "i4", 56)
        plausible = all(0 < w <= LARGEST for w in words[:2]) and words[2] > 0 and 0 <= words[23] < 1 << 30
        if plausible and (words[3] in MODES or words[3] in REFUSED):
            return words, order
    raise DataError(
        f"{path}: not an MRC stack: its first words {[int(w) for w in np.frombuffer(raw, '<i4', 4)]} are no image "
        "size and mode. Particle images must be MRC files (.mrcs, .mrc), not compressed."
    )
