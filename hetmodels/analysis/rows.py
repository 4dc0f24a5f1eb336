"""The columns of a run's or a truth's star file as arrays, and which rows of the two are the same particle."""

import dataclasses
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from hetmodels.data.star import read_star
from hetmodels.errors import DataError


@dataclasses.dataclass(frozen=True)
class Rows:
    """The columns of a star file that scores use, one entry per particle.

    Attributes:
        path: the file.
        table: its particle block.
    """

    path: Path
    table: pd.DataFrame

    @classmethod
    def read(cls, path: Path) -> "Rows":
        """Read the particle block: the one called particles, else the longest.

        Raises:
            DataError: if the file is missing or there are no rows.
        """
        if not path.is_file():
            raise DataError(f"{path}: there is no such file.")
        blocks = read_star(path)
        table = blocks.get("particles", max(blocks.values(), key=len, default=pd.DataFrame()))
        rows = cls(path, table.rename(columns=lambda c: str(c).removeprefix("_")))
        if not len(rows.table):
            raise DataError(f"{path}: a particle table must have rows, found none.")
        return rows

    def numbers(self, column: str) -> np.ndarray | None:
        """A column as float64, None if absent.

        Raises:
            DataError: if an entry is no finite number.
        """
        if column not in self.table:
            return None
        values = pd.to_numeric(self.table[column], errors="coerce").to_numpy(float)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            text = self.table[column].iloc[bad[0]]
            raise DataError(f"{self.path}: _{column} must be finite numbers, row {bad[0]} holds {text!r}.")
        return values

    def required(self, column: str) -> np.ndarray:
        """A column that must be there, as float64.

        Raises:
            DataError: if it is missing or an entry is no finite number.
        """
        values = self.numbers(column)
        if values is None:
            raise DataError(f"{self.path}: the column _{column} is needed, found {', '.join(self.table.columns[:12])}.")
        return values

    def numbered(self, stem: str) -> np.ndarray | None:
        """Columns stem1, stem2, … side by side, (particles, columns); None if there is no stem1."""
        columns: list[np.ndarray] = []
        while (values := self.numbers(f"{stem}{len(columns) + 1}")) is not None:
            columns.append(values)
        return np.stack(columns, axis=1) if columns else None

    def rotation(self) -> np.ndarray | None:
        """RELION's matrices A from the Euler angles, (particles, 3, 3)."""
        found = [self.numbers(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")]
        angles = [a for a in found if a is not None]
        if len(angles) < 3:
            return None
        matrices = Rotation.from_euler("ZYZ", np.stack(angles, axis=1), degrees=True).as_matrix()
        return np.swapaxes(matrices, -1, -2)

    @cached_property
    def images(self) -> np.ndarray | None:
        """Names of the images without folders, as far as they tell all rows apart."""
        if "rlnImageName" not in self.table:
            return None
        names = np.array([_base(str(name)) for name in self.table["rlnImageName"]])
        return names if len(np.unique(names)) == len(names) else None


def _base(name: str) -> str:
    """000001@folder/stack.mrcs -> 1@stack.mrcs."""
    row, _, stack = name.rpartition("@")
    return f"{row.lstrip('0') or '0'}@{stack.rpartition('/')[2]}"


def matching_rows(run: Rows, truth: Rows) -> np.ndarray:
    """For each particle of the run its row in the truth, by image name where both tell images apart, else by order.

    Raises:
        DataError: if a particle has no true values.
    """
    if run.images is not None and truth.images is not None:
        where = pd.Index(truth.images).get_indexer(pd.Index(run.images))
        if (where >= 0).all():
            return where
        if (where >= 0).any():
            lost = run.images[where < 0]
            raise DataError(
                f"{truth.path}: {len(lost)} particles of the run are not in the truth, the first {lost[0]!r}."
            )
    if len(run.table) != len(truth.table):
        raise DataError(
            f"{truth.path}: the truth must have one row per particle of the run, found {len(truth.table)} rows for "
            f"{len(run.table)} particles. Is this the truth of another set?"
        )
    return np.arange(len(run.table))
