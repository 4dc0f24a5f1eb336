"""A particle set: images on disk or in memory with their poses, CTF, groups and splits."""

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hetmodels.data.batch import Batch
from hetmodels.data.fields import Metadata, Overrides
from hetmodels.data.fingerprint import fingerprint, image_sample
from hetmodels.data.metadata import read_metadata
from hetmodels.data.packed import InMemory, Loading, LowBand, Packed, pack
from hetmodels.data.prepare import Correction, prepare
from hetmodels.data.spectra import CHUNK, reference_spectrum
from hetmodels.data.splits import Split, number, split
from hetmodels.data.stacks import Stacks
from hetmodels.data.table import Table, read_table
from hetmodels.errors import DataError, UsageError
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc
from hetmodels.tree import html_table


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Particles:
    """Particle images and what is known of them; everything is numpy on the host until a batch is asked for.

    Particles are numbered 0 … N-1 in the order of the table; a subset numbers its own particles from 0 again.

    Attributes:
        packed: the images and their Fourier coefficients.
        table: what the file says of all its rows.
        splits: half sets and held-out particles of all rows.
        rows: the table's row of each particle, int64 (N,).
        notes: things found on the way that a user should know.
        parent: the set that this one was made from.
    """

    packed: Packed
    table: Table
    splits: Split
    rows: np.ndarray
    notes: tuple[str, ...] = ()
    parent: "Particles | None" = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        datadir: str | Path | None = None,
        passthrough: str | Path | None = None,
        poses: str | Path | None = None,
        ctf: str | Path | None = None,
        overrides: Overrides | None = None,
        box: int | None = None,
        window: float | None = None,
        loading: Loading | None = None,
    ) -> "Particles":
        """Open a particle table; images are looked up, not read.

        Args:
            path: particle table, see `read_metadata`.
            datadir: folder that the table's image paths start from, or the one stack that holds all images.
            passthrough: cryoSPARC passthrough file.
            poses: cryoDRGN poses .pkl.
            ctf: cryoDRGN CTF .pkl.
            overrides: values that replace the table's.
            box: even box to which the images are Fourier-cropped.
            window: diameter of a soft circular window on the images: [Å], or a fraction of the box if at most 1.
            loading: cache and threads.

        Raises:
            DataError: if the table or its stacks cannot be used.
            UsageError: if box or window do not fit the images.
        """
        options = {"passthrough": passthrough, "poses": poses, "ctf": ctf, "datadir": datadir}
        metadata = read_metadata(path, **options, overrides=overrides)
        return cls.from_metadata(metadata, datadir=datadir, box=box, window=window, loading=loading)

    @classmethod
    def from_metadata(
        cls,
        metadata: Metadata,
        *,
        datadir: str | Path | None = None,
        box: int | None = None,
        window: float | None = None,
        loading: Loading | None = None,
    ) -> "Particles":
        """The particles of a table already read; see `open`."""
        if not len(metadata.stack):
            raise DataError(f"{metadata.path}: the table has no particles; at least one row is needed.")
        folder = Path(metadata.path).parent
        source = Stacks.locate(metadata.stack, metadata.row, folder, None if datadir is None else Path(datadir))
        table, notes = read_table(metadata, source)
        packed = pack(source, table.reference_pixel, table.sign, box, window, loading or Loading())
        return cls._made(packed, table, metadata.subset, notes)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        rotation: np.ndarray,
        shift: np.ndarray,
        ctf: Ctf,
        spacing: float,
        *,
        group: np.ndarray | None = None,
        micrograph: np.ndarray | None = None,
        half: np.ndarray | None = None,
        box: int | None = None,
        window: float | None = None,
    ) -> "Particles":
        """A set held in memory, bright protein.

        Args:
            images: (N, D, D), real.
            rotation: matrices A, (N, 3, 3).
            shift: content shifts [Å], (N, 2).
            ctf: contrast transfer with N rows; `Ctf.ideal(N)` for none.
            spacing: pixel size [Å].
            group: optics groups from 0, (N,); one group if None.
            micrograph: label of each particle's micrograph, (N,).
            half: half sets 0 and 1, (N,); made by micrograph if None.
            box: see `open`.
            window: see `open`.

        Raises:
            DataError: if there are no images, or one of those sampled holds no data.
            UsageError: if an argument does not have N rows.
        """
        source = InMemory(np.asarray(images))
        count = len(source)
        if not count:
            raise DataError("Particles: no images were given; at least one is needed.")
        table = Table(
            name="Particles",
            pixel=np.full(count, float(spacing)),
            group=np.zeros(count, np.int32) if group is None else np.asarray(group, np.int32),
            image=np.arange(count),
            micrograph=None if micrograph is None else number(np.asarray(micrograph).tolist()),
            rotation=np.asarray(rotation, np.float64),
            shift=np.asarray(shift, np.float64),
            ctf=jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), ctf),
            identity=fingerprint({"shape": np.array(source.array.shape), "sample": image_sample(source)}),
            no_ctf=not (np.any(ctf.defocus_u) or np.any(ctf.defocus_v)),
        )
        packed = pack(source, float(spacing), 1, box, window, Loading())
        return cls._made(packed, table, None if half is None else np.asarray(half) + 1, ())

    @classmethod
    def _made(cls, packed: Packed, table: Table, subset: np.ndarray | None, notes: tuple[str, ...]) -> "Particles":
        parts = split(table.image, table.micrograph, subset, table.identity)
        return cls(packed, table, parts, np.arange(len(table.image)), (*notes, parts.note))

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Particles({self.table.name}: {len(self)} images of {self.size} pixels of {self.spacing:.6g} Å)"

    def _repr_html_(self) -> str:
        held, poses = int(self.held_out.sum()), "none" if self.rotation is None else "known"
        facts = {"images": len(self), "box": f"{self.size} px of {self.spacing:.6g} Å", "optics groups": self.groups}
        return html_table(f"Particles: {self.table.name}", facts | {"poses": poses, "held out": held})

    @property
    def metadata(self) -> Metadata | None:
        """The table as it was read, with all its rows; None for a set from arrays."""
        return self.table.metadata

    @property
    def disc(self) -> Disc:
        """The Fourier pixels kept of each image."""
        return self.packed.disc

    @property
    def size(self) -> int:
        """Box edge D' in pixels, after a Fourier crop."""
        return self.disc.size

    @property
    def spacing(self) -> float:
        """Pixel size of that box [Å]; of the first optics group where groups differ."""
        return self.table.reference_pixel * self.packed.source.box / self.size

    @property
    def window(self) -> float | None:
        """Diameter of the image window [Å], or None."""
        return None if self.packed.window is None else self.packed.window * self.table.reference_pixel

    @property
    def gain(self) -> float:
        """Factor (D/D')^2 of the Fourier crop, part of the transfer of every batch; see `Correction`."""
        return (self.packed.source.box / self.size) ** 2

    @property
    def groups(self) -> int:
        """Number of optics groups of the whole table."""
        return int(self.table.group.max()) + 1

    @property
    def group(self) -> np.ndarray:
        """Optics group, int32 (N,)."""
        return self.table.group[self.rows]

    @property
    def half(self) -> np.ndarray:
        """Half set 0 or 1, int8 (N,)."""
        return self.splits.half[self.rows]

    @property
    def held_out(self) -> np.ndarray:
        """True where the particle must not train, bool (N,)."""
        return self.splits.held_out[self.rows]

    @property
    def rotation(self) -> np.ndarray | None:
        """Rotation matrices A of the table, float64 (N, 3, 3)."""
        return None if self.table.rotation is None else self.table.rotation[self.rows]

    @property
    def shift(self) -> np.ndarray | None:
        """Content shifts t = -origin of the table [Å], float64 (N, 2)."""
        return None if self.table.shift is None else self.table.shift[self.rows]

    @property
    def relative(self) -> np.ndarray:
        """Pixel size of the first optics group over the particle's own, (N,): batch.shift = shift * relative."""
        return self.table.relative[self.rows]

    @property
    def ctf(self) -> Ctf:
        """Contrast transfer, float64 numpy; stretch and scale contain the pixel size relative to the first group.

        Raises:
            DataError: if the table has none.
        """
        self.table.require_ctf(self.rows)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[self.rows], self.table.relative_ctf)

    @cached_property
    def _narrow_ctf(self) -> Ctf:
        """The same for batches, float32, all rows of the table."""
        if self.parent is not None:
            return self.parent._narrow_ctf
        self.table.require_ctf(self.rows)
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), self.table.relative_ctf)

    @cached_property
    def correction(self) -> Correction:
        """What `batch` accounts for besides CTF and noise."""
        ctf = self.table.ctf
        aberrated = ctf is not None and bool(np.any(ctf.beam_tilt) or np.any(ctf.odd))
        return Correction(self.table.flipped, self.table.premultiplied, aberrated, self.gain)

    @cached_property
    def reference(self) -> np.ndarray:
        """Reference spectrum of each optics group, E|x|^2 per coefficient, float64 (groups, shells); see `spectra`."""
        if self.parent is not None:
            return self.parent.reference
        return reference_spectrum(self._corrected, self.group, self.groups, self.disc)

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 of the table, the file sizes, a sample of the images, box and window."""
        if self.parent is not None and np.array_equal(self.rows, self.parent.rows):
            return self.parent.data_hash
        if self.parent is not None:
            return fingerprint({"of": self.parent.data_hash, "rows": self.rows})
        source = self.packed.source
        images = {"bytes": source.sizes, "sample": image_sample(source)}
        return fingerprint(self.table.content() | {"box": self.size, "window": self.packed.window, "images": images})

    @property
    def resident(self) -> bool:
        """Whether coefficients stay in memory after their first reading."""
        return self.packed.resident

    def images(self, index: np.ndarray) -> np.ndarray:
        """Pixels as in the file, float32 (n, D, D): no crop, window or sign."""
        return self.packed.source.read(self.rows[index])

    def coefficients(self, index: np.ndarray) -> np.ndarray:
        """Raw orthonormal Fourier coefficients, windowed and with the contrast sign, complex64 (n, pixels)."""
        return self.packed.read(self.rows[index])

    def _corrected(self, index: np.ndarray) -> np.ndarray:
        """Coefficients as the likelihood sees them, but not whitened: (n, pixels)."""
        raw = self.coefficients(index)
        if not (self.correction.premultiplied or self.correction.aberrated):
            return raw
        root = np.ones((self.groups, self.disc.shells), np.float32)
        images, _ = self._prepared(np.resize(raw, (CHUNK, self.disc.pixels)), np.resize(self.rows[index], CHUNK), root)
        return np.asarray(images)[: len(index)]

    def _prepared(self, raw: np.ndarray, rows: np.ndarray, root: np.ndarray) -> tuple[jax.Array, jax.Array]:
        ctf = jax.tree.map(lambda leaf: leaf[rows], self._narrow_ctf)
        group = self.table.group[rows]
        return prepare(raw, ctf, group, root, disc=self.disc, spacing=self.spacing, correction=self.correction)

    @cached_property
    def _root(self) -> np.ndarray:
        return np.sqrt(self.reference).astype(np.float32)

    def batch(self, index: np.ndarray, weight: np.ndarray | None = None) -> Batch:
        """Particles on the device, whitened; one compilation per number of rows.

        Without poses in the table, rotations are identities and shifts zero.

        Args:
            index: particle numbers, (rows,).
            weight: 1, or 0 for padding, (rows,); ones if None.

        Raises:
            DataError: if the table has no CTF, or an image holds no data.
        """
        index = np.asarray(index, np.int64)
        rows, count, table = self.rows[index], len(index), self.table
        images, transfer = self._prepared(self.packed.read(rows), rows, self._root)
        rotation = np.tile(np.eye(3), (count, 1, 1)) if table.rotation is None else table.rotation[rows]
        shift = np.zeros((count, 2)) if table.shift is None else table.shift[rows] * table.relative[rows, None]
        return Batch(
            images=images,
            ctf=transfer,
            rotation=jnp.asarray(rotation, np.float32),
            shift=jnp.asarray(shift, np.float32),
            stretch=jnp.asarray(self._narrow_ctf.stretch[rows]),
            group=jnp.asarray(table.group[rows]),
            half=jnp.asarray(self.splits.half[rows], np.int32),
            held_out=jnp.asarray(self.splits.held_out[rows], np.int32),
            weight=jnp.asarray(np.ones(count) if weight is None else weight, np.float32),
            index=jnp.asarray(index, np.int32),
        )

    def batches(self, order: np.ndarray, size: int, prefetch: int = 2) -> Iterator[Batch]:
        """Batches of one size in the given order, made ahead in a thread.

        The last one is filled up with copies of its last particle at weight 0.

        Args:
            order: particle numbers, (n,).
            size: rows of a batch.
            prefetch: batches made while the caller works on one.
        """
        parts = [np.asarray(order[start : start + size], np.int64) for start in range(0, len(order), size)]
        with ThreadPoolExecutor(1) as pool:
            waiting: deque[Future[Batch]] = deque()
            for part in parts:
                waiting.append(pool.submit(self._padded, part, size))
                if len(waiting) > prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _padded(self, index: np.ndarray, size: int) -> Batch:
        weight = (np.arange(size) < len(index)).astype(np.float32)
        return self.batch(np.pad(index, (0, size - len(index)), mode="edge"), weight)

    def subset(self, index: np.ndarray) -> "Particles":
        """Some of the particles (numbers or a mask), with the splits, reference spectrum and images of this set."""
        rows = self.rows[np.asarray(index)]
        if not len(rows):
            raise UsageError(f"{self!r}: the subset has no particles; choose at least one.")
        return dataclasses.replace(self, rows=rows, parent=self)

    def with_holdout(self, fraction: float) -> "Particles":
        """The same particles with another fraction of the table held out; see `Split.with_holdout`."""
        return dataclasses.replace(self, splits=self.splits.with_holdout(fraction), parent=self)

    def with_loading(self, loading: Loading) -> "Particles":
        """The same particles, read with other cache and threads."""
        old = self.packed
        packed = Packed(old.source, old.disc, old.sign, old.window, loading)
        return dataclasses.replace(self, packed=packed, parent=self)

    def cropped(self, box: int) -> "Particles":
        """The same particles Fourier-cropped to a smaller even box."""
        return dataclasses.replace(self, packed=LowBand(self.packed, box), parent=None)

    def require_even(self) -> None:
        """Raise DataError if the box is odd."""
        if self.size % 2:
            raise DataError(
                f"{self.table.name}: the box is odd, {self.size} pixels; fitting needs an even one. "
                f"Give --box {self.size - 1} (a Fourier crop)."
            )

    def require_poses(self) -> None:
        """Raise DataError if poses are missing, not finite, or all the same; see `Table.require_poses`."""
        self.table.require_poses(self.rows)
