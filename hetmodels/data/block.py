"""One table of a STAR file, kept as text: fields stay as they were written, numbers are read when asked for."""

import dataclasses
import io
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hetmodels.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

FIELD = re.compile(rb"\"[^\"\n]*\"(?=\s|$)|'[^'\n]*'(?=\s|$)|\S+")
_NAN = ["nan", "NaN", "NAN", "-nan", "+nan"]


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """One table.

    Attributes:
        name: what follows `data_`.
        labels: column labels with their underscore.
        rows: the rows as written, one a line.
        head: text from `data_` to the first row.
        tail: text after the last row; it holds comments that belong to the next block.
        where: what to call the block in messages.
        line: number of the first row's line in the file, counted from 1.
    """

    name: str
    labels: tuple[str, ...]
    rows: bytes
    head: bytes
    tail: bytes
    where: str
    line: int = 1

    def __len__(self) -> int:
        return self.rows.count(b"\n")

    def __contains__(self, label: str) -> bool:
        return label in self.labels

    @cached_property
    def quoted(self) -> bool:
        """Whether there are quotes, which make fields that hold blanks possible."""
        return b'"' in self.rows or b"'" in self.rows

    def fields(self, line: bytes) -> list[bytes]:
        """The fields of one row as written, quotes included."""
        return FIELD.findall(line) if self.quoted else line.split()

    def text(self, label: str) -> np.ndarray:
        """A column as text without quotes, object (rows,)."""
        return self.columns(text=[label])[label]

    def number(self, label: str) -> np.ndarray:
        """A column as float64 (rows,); see `columns`."""
        return self.columns(numbers=[label])[label]

    def columns(self, text: Collection[str] = (), numbers: Collection[str] = ()) -> dict[str, np.ndarray]:
        """Several columns in one pass: those of `text` as object, those of `numbers` as float64.

        Raises:
            DataError: if an entry of `numbers` is no number; `nan` and `inf` are numbers here.
        """
        import pandas as pd

        if not (text or numbers):
            return {}
        if not len(self):
            return {label: np.zeros(0, object) for label in text} | {label: np.zeros(0) for label in numbers}
        if self.quoted:
            return self._slowly(text, numbers)
        place = {label: self.labels.index(label) for label in (*text, *numbers)}
        try:
            frame = pd.read_csv(
                io.BytesIO(self.rows),
                sep=r"\s+",
                engine="c",
                header=None,
                usecols=list(place.values()),
                dtype={place[label]: object if label in text else np.float64 for label in place},
                keep_default_na=False,
                na_values={place[label]: _NAN for label in numbers},
                quoting=3,
                encoding_errors="surrogateescape",
            )
        except ValueError:  # some number is none: find it
            return self._slowly(text, numbers)
        return {label: frame[index].to_numpy() for label, index in place.items()}

    def _slowly(self, text: Collection[str], numbers: Collection[str]) -> dict[str, np.ndarray]:
        """The same by Python, for quoted fields and for messages."""
        rows = [self.fields(line) for line in self.rows.splitlines()]
        found: dict[str, np.ndarray] = {}
        for label in (*text, *numbers):
            index = self.labels.index(label)
            values = np.empty(len(rows), object)
            values[:] = [_unquoted(row[index]).decode("utf-8", "surrogateescape") for row in rows]
            found[label] = values if label in text else self._numeric(label, values)
        return found

    def _numeric(self, label: str, values: np.ndarray) -> np.ndarray:
        numbers = np.empty(len(values))
        for row, value in enumerate(values):
            try:
                numbers[row] = float(value)
            except ValueError:
                raise DataError(
                    f"{self.where}: {label} must hold numbers, row {row} (line {self.line + row}) holds {value!r}. "
                    "Correct the row, or remove it."
                ) from None
        return numbers

    def frame(self) -> "pd.DataFrame":
        """All columns as text, named by their labels."""
        import pandas as pd

        return pd.DataFrame(self.columns(text=self.labels), columns=list(self.labels), dtype=object)

    def edited(
        self,
        index: np.ndarray | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        drop: Collection[str] = (),
    ) -> "Block":
        """The block with some of its rows, in the given order, and with columns replaced, added or left out.

        Other fields are copied as they are written.

        Args:
            index: rows to keep, (n,); all if None.
            columns: text of new columns by label, n entries each; a label that exists is replaced in its place.
            drop: labels to leave out.
        """
        new = {label: [_written(entry) for entry in entries] for label, entries in (columns or {}).items()}
        lines = self.rows.split(b"\n")[:-1]
        lines = lines if index is None else [lines[i] for i in np.asarray(index).tolist()]
        added = [label for label in new if label not in self.labels]
        old = [label for label in self.labels if label not in drop]
        if any(label in new for label in old) or len(old) < len(self.labels):
            lines = self._rewritten(lines, old, new)
        parts = [lines, *(new[label] for label in added)]
        rows = b"".join(b" ".join(row) + b"\n" for row in zip(*parts, strict=True)) if added else joined(lines)
        labels = (*old, *added)
        return Block(self.name, labels, rows, loop_head(self.name, labels), self.tail or b"\n", self.where)

    def _rewritten(self, lines: list[bytes], kept: list[str], columns: Mapping[str, list[bytes]]) -> list[bytes]:
        place = [self.labels.index(label) for label in kept]
        new = [(i, columns[label]) for i, label in enumerate(kept) if label in columns]
        out = []
        for row, line in enumerate(lines):
            fields = self.fields(line)
            fields = [fields[i] for i in place]
            for position, entries in new:
                fields[position] = entries[row]
            out.append(b" ".join(fields))
        return out


def loop_head(name: str, labels: Sequence[str]) -> bytes:
    """Text of a block up to its first row."""
    listed = "".join(f"{label} #{i}\n" for i, label in enumerate(labels, 1))
    return f"data_{name}\n\nloop_\n{listed}".encode()


def new_block(name: str, columns: Mapping[str, Sequence[str]]) -> Block:
    """A block made from columns of text by label, of equal length."""
    encoded = [[_written(entry) for entry in entries] for entries in columns.values()]
    rows = b"".join(b" ".join(row) + b"\n" for row in zip(*encoded, strict=True))
    return Block(name, tuple(columns), rows, loop_head(name, list(columns)), b"\n", f"data_{name}")


def joined(lines: list[bytes]) -> bytes:
    """Lines as text, each with its line end."""
    return b"\n".join([*lines, b""])


def _unquoted(field: bytes) -> bytes:
    quoted = len(field) > 1 and field[:1] in (b'"', b"'") and field[-1:] == field[:1]
    return field[1:-1] if quoted else field


def _written(entry: str) -> bytes:
    """A field as it is to be written: in quotes if it is empty or holds blanks."""
    field = entry.encode("utf-8", "surrogateescape")
    return field if field and not field.split()[1:] and field == field.strip() else b'"' + field + b'"'
