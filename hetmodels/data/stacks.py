"""Particle images in many MRC stacks, memory-mapped and read when asked for."""

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from hetmodels.data.mrc import Header, read_header
from hetmodels.errors import DataError

OPEN = 64  # memory maps kept open at a time


class Images(Protocol):
    """A numbered set of square images, in files or in memory."""

    @property
    def box(self) -> int:
        """Edge of the images in pixels."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of image data in each file."""

    def __len__(self) -> int: ...

    def read(self, index: np.ndarray) -> np.ndarray:
        """Images by number, checked, float32 (n, box, box)."""

    def name(self, index: int) -> str:
        """What to call an image in a message, as `000012@file`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stacks:
    """Images spread over MRC files; pixels stay on disk until they are read.

    Attributes:
        headers: the files.
        texts: the path of each file as the table writes it.
        file: number of the file of each image, int32 (N,).
        row: number of the image in its file, counted from 0, int64 (N,).
        notes: odd but harmless things found.
    """

    headers: tuple[Header, ...]
    texts: tuple[str, ...]
    file: np.ndarray
    row: np.ndarray
    notes: tuple[str, ...] = ()
    _open: OrderedDict = dataclasses.field(default_factory=OrderedDict, repr=False)

    @classmethod
    def locate(cls, stack: Iterable[str], row: np.ndarray, folder: Path, datadir: Path | None = None) -> "Stacks":
        """Find the files that a table names and check that they hold the images it asks for.

        Args:
            stack: path of each image's file as the table writes it, (N,).
            row: number of each image in its file, counted from 0, (N,).
            folder: where the table lies.
            datadir: folder to search first, or the one stack that all images are in.

        Raises:
            DataError: for missing, truncated or foreign files, images past the end of a stack and unequal boxes.
        """
        numbers: dict[str, int] = {}
        file = np.fromiter((numbers.setdefault(text, len(numbers)) for text in stack), np.int32)
        texts = tuple(numbers)
        headers = tuple(read_header(path) for path in find_stacks(texts, folder, datadir))
        stacks = cls(headers, texts, file, np.asarray(row, np.int64), tuple(h.note for h in headers if h.note))
        stacks._check()
        return stacks

    def _check(self) -> None:
        counts = np.array([h.count for h in self.headers], np.int64)
        bad = np.flatnonzero((self.row < 0) | (self.row >= counts[self.file]))
        if len(bad):
            header = self.headers[self.file[bad[0]]]
            raise DataError(
                f"{self.name(bad[0])}: the table asks for image {self.row[bad[0]] + 1} (table row {bad[0]}), but "
                f"{header.path} holds {header.count} images, numbered from 1; {len(bad)} rows point outside their "
                "stack. The table and the stack do not belong together: extract again, or give the right --datadir."
            )
        for header in self.headers:
            if header.box != self.box:
                raise DataError(
                    f"{header.path}: all images must have one box, this stack has {header.box} x {header.box} pixels "
                    f"and {self.headers[0].path} has {self.box} x {self.box}. Extract or crop them to one box."
                )

    @property
    def box(self) -> int:
        """Edge of the images in pixels."""
        return self.headers[0].box

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of image data in each file."""
        return tuple(h.count * h.image_bytes for h in self.headers)

    def name(self, index: int) -> str:
        """`000012@file` of an image, counted from 1 as in a table."""
        return f"{self.row[index] + 1:06d}@{self.texts[self.file[index]]}"

    def read(self, index: np.ndarray) -> np.ndarray:
        """Images by number, float32 (n, box, box); files are visited one after the other, rows in file order.

        Raises:
            DataError: if an image has non-finite pixels or is constant.
        """
        index = np.asarray(index, np.int64)
        images = np.empty((len(index), self.box, self.box), np.float32)
        order = np.lexsort((self.row[index], self.file[index]))
        files = self.file[index[order]]
        for part in np.split(order, np.flatnonzero(np.diff(files)) + 1):
            if len(part):
                _copy(self._memmap(int(self.file[index[part[0]]])), self.row[index[part]], images, part)
        check_pixels(images, index, self)
        return images

    def _memmap(self, number: int) -> np.ndarray:
        """The map of one file; the least recently used one is closed when too many are open."""
        found = self._open.pop(number, None)
        if found is None:
            found = self.headers[number].memmap()
        self._open[number] = found
        while len(self._open) > OPEN:
            self._open.popitem(last=False)
        return found


def _copy(stack: np.ndarray, rows: np.ndarray, images: np.ndarray, places: np.ndarray) -> None:
    """images[places] = stack[rows] for ascending rows, by slices where both sides are contiguous."""
    ends = np.flatnonzero((np.diff(rows) != 1) | (np.diff(places) != 1)) + 1
    if len(ends) > len(rows) // 4:
        images[places] = stack[rows]
        return
    for start, stop in zip(np.r_[0, ends], np.r_[ends, len(rows)], strict=True):
        images[places[start] : places[stop - 1] + 1] = stack[rows[start] : rows[stop - 1] + 1]


def check_pixels(images: np.ndarray, index: np.ndarray, source: Images) -> None:
    """Refuse images that hold no data: non-finite pixels, all zero, or constant.

    Raises:
        DataError: naming the first such image.
    """
    low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
    bad = np.flatnonzero(~((low < high) & np.isfinite(low) & np.isfinite(high)))
    if not len(bad):
        return
    first = int(index[bad[0]])
    image = images[bad[0]]
    count = int((~np.isfinite(image)).sum())
    if count:
        what = f"{count} of its {image.size} pixels are NaN or infinite; pixels must be finite"
    elif image.flat[0] == 0:
        what = "all its pixels are zero; such an image holds no data"
    else:
        what = f"all its pixels have the value {image.flat[0]:.6g}; such an image holds no data"
    raise DataError(f"{source.name(first)} (table row {first}): {what}. Extract it again, or remove its row.")


def find_stacks(texts: Sequence[str], folder: Path, datadir: Path | None = None) -> list[Path]:
    """Where the files named in a table are.

    A relative path is looked for under --datadir, the table's folder and up to two folders above it (tables in job
    folders name files relative to the project), and the working directory; then by its bare name under --datadir and
    in the table's folder.

    Raises:
        DataError: if a file is in none of these places, with the places.
    """
    if datadir is not None and datadir.is_file():
        if len(texts) == 1:
            return [datadir]
        raise DataError(f"--datadir {datadir}: one stack was given, but the table names {len(texts)}; give a folder.")
    if datadir is not None and not datadir.is_dir():
        raise DataError(f"--datadir {datadir}: no such folder.")
    folder = folder.resolve()
    extra = [] if datadir is None else [datadir]
    roots = list(dict.fromkeys([*extra, folder, *folder.parents[:2], Path.cwd()]))
    bare = Counter(Path(text).name for text in texts)
    found = []
    for text in texts:
        renamed = [root / Path(text).name for root in [*extra, folder]] if bare[Path(text).name] == 1 else []
        path = next((path for path in chain((root / text for root in roots), renamed) if path.is_file()), None)
        if path is None:
            raise _missing(text, list(dict.fromkeys([*(root / text for root in roots), *renamed])), datadir)
        found.append(path)
    return found


def _missing(text: str, tried: Sequence[Path], datadir: Path | None) -> DataError:
    places = "; ".join(str(path) for path in tried)
    cure = "Give the folder that the table's paths start from with --datadir"
    if datadir is not None:
        cure = f"--datadir {datadir} does not hold it; give the folder that the table's paths start from"
    return DataError(
        f"{text}: the table names this image file, but it does not exist. Tried {places}. {cure}, or, if all images "
        "are in one renamed stack, that stack's path."
    )
