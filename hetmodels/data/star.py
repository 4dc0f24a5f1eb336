"""STAR files as text: every field stays as it was written, and numbers are read only from the columns asked for.

A file is a list of blocks `data_NAME`, each with either one loop (labels, then one row a line) or label–value pairs,
which are kept as a loop of one row. The order of blocks does not matter, nor do `#n` after labels.
"""

import dataclasses
import gzip
import io
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from hetmodels.errors import DataError
from hetmodels.run_directory import replacing

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 1 << 23  # bytes looked at together when fields are counted
_FIELD = re.compile(rb"\"[^\"\n]*\"(?=\s|$)|'[^'\n]*'(?=\s|$)|\S+")
_IRREGULAR = re.compile(rb"\n[ \t]*(?:[#\n]|loop_)")
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
    def _quoted(self) -> bool:
        return b'"' in self.rows or b"'" in self.rows

    def fields(self, line: bytes) -> list[bytes]:
        """The fields of one row as written, quotes included."""
        return _FIELD.findall(line) if self._quoted else line.split()

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
        if self._quoted:
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
                float_precision="round_trip",
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
        columns = {label: [_written(entry) for entry in entries] for label, entries in (columns or {}).items()}
        lines = self.rows.split(b"\n")[:-1]
        lines = lines if index is None else [lines[i] for i in np.asarray(index).tolist()]
        added = [label for label in columns if label not in self.labels]
        old = [label for label in self.labels if label not in drop]
        if any(label in columns for label in old) or len(old) < len(self.labels):
            lines = self._rewritten(lines, old, columns)
        parts = [lines, *(columns[label] for label in added)]
        rows = b"".join(b" ".join(row) + b"\n" for row in zip(*parts, strict=True)) if added else _joined(lines)
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


@dataclasses.dataclass(frozen=True, eq=False)
class StarFile:
    """All blocks of a file, in its order.

    Attributes:
        path: the file.
        preamble: text before the first block.
        blocks: the tables.
    """

    path: Path
    preamble: bytes
    blocks: tuple[Block, ...]

    def find(self, name: str) -> Block | None:
        """The block of that name."""
        return next((block for block in self.blocks if block.name == name), None)

    def with_block(self, new: Block) -> "StarFile":
        """The file with the block of the same name replaced."""
        return dataclasses.replace(self, blocks=tuple(new if b.name == new.name else b for b in self.blocks))

    def content(self) -> bytes:
        """The file's bytes; blocks that were not edited are as they were read."""
        return self.preamble + b"".join(part for b in self.blocks for part in (b.head, b.rows, b.tail))

    def write(self, path: Path) -> None:
        """Write the file in one step."""
        with replacing(path) as temporary:
            temporary.write_bytes(self.content())


def read_star(path: str | Path) -> "dict[str, pd.DataFrame]":
    """The tables of a STAR file by block name, all entries as text, columns named by their labels.

    Raises:
        DataError: if the file is missing or no well-formed STAR file.
    """
    return {block.name: block.frame() for block in open_star(path).blocks}


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, unpacked if they are gzip.

    Raises:
        DataError: if the file is missing, cannot be read, or its compression is damaged.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a particle table. Name the file in it.")
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file. Check the name.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the gzip file is damaged ({error}). Copy it again.") from error


def open_star(path: str | Path, data: bytes | None = None) -> StarFile:
    """Read a STAR file, plain or gzip.

    Args:
        path: the file.
        data: its bytes, if they were read before.

    Raises:
        DataError: if it is missing, holds no blocks, or is malformed: rows of unequal length, two tables in one
            block, two blocks of one name.
    """
    path = Path(path)
    data = read_bytes(path) if data is None else data
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.endswith(b"\n"):
        data += b"\n"
    starts = _block_starts(data)
    if not starts:
        raise DataError(f"{path}: a STAR file has blocks that begin with data_, this file has none.")
    ends = [*starts[1:], len(data)]
    blocks, line = [], 1 + data.count(b"\n", 0, starts[0])
    for start, end in zip(starts, ends, strict=True):
        blocks.append(_parse(data[start:end], path, line))
        line += data.count(b"\n", start, end)
    names = [block.name for block in blocks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: each block of a STAR file has its own name, there are two called data_{twice}.")
    return StarFile(path, data[: starts[0]], tuple(blocks))


def loop_head(name: str, labels: Sequence[str]) -> bytes:
    """Text of a block up to its first row."""
    listed = "".join(f"{label} #{i}\n" for i, label in enumerate(labels, 1))
    return f"data_{name}\n\nloop_\n{listed}".encode()


def new_block(name: str, columns: Mapping[str, Sequence[str]]) -> Block:
    """A block made from columns of text by label, of equal length."""
    encoded = [[_written(entry) for entry in entries] for entries in columns.values()]
    rows = b"".join(b" ".join(row) + b"\n" for row in zip(*encoded, strict=True))
    return Block(name, tuple(columns), rows, loop_head(name, list(columns)), b"\n", f"data_{name}")


def _block_starts(data: bytes) -> list[int]:
    """Where a line consists of one word that begins with data_; a row may begin with such a word, but goes on."""
    starts, at = [], 0 if data.startswith(b"data_") else data.find(b"\ndata_") + 1
    while at > 0 or (at == 0 and not starts and data.startswith(b"data_")):
        words = data[at : data.find(b"\n", at)].split()
        if len(words) == 1 or words[1].startswith(b"#"):
            starts.append(at)
        at = data.find(b"\ndata_", at) + 1
    return starts


def _parse(raw: bytes, path: Path, line: int) -> Block:
    """One block from its text, which begins with data_."""
    at = raw.find(b"\n") + 1
    name = raw[:at].split()[0][5:].decode("utf-8", "surrogateescape")
    where = f"{path}, block data_{name}"
    loop, labels, values = False, [], []
    while at < len(raw):
        end = raw.find(b"\n", at) + 1
        words = _FIELD.findall(raw[at:end])
        if not words or words[0].startswith(b"#"):
            pass
        elif words[0] == b"loop_" and not loop and not labels:
            loop = True
        elif words[0].startswith(b"_"):
            labels.append(words[0].decode("utf-8", "surrogateescape"))
            values.append(_pair_value(words, loop, where))
        elif loop and words[0] != b"loop_":
            break
        else:
            _malformed(where, words[0])
        at = end
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise DataError(f"{where}: each column has its own label, {twice} appears twice. Rename or remove one.")
    if not loop:
        rows = b" ".join(values) + b"\n" if labels else b""
        return Block(name, tuple(labels), rows, loop_head(name, labels), b"\n", where, line)
    rows, tail = _split_tail(raw[at:])
    if rows and not labels:
        raise DataError(f"{where}: the loop has rows but no labels, so its columns have no meaning.")
    first = line + raw.count(b"\n", 0, at)
    block = Block(name, tuple(labels), _regular(rows, where), raw[:at], tail, where, first)
    _check_fields(block)
    return block


def _pair_value(words: list[bytes], loop: bool, where: str) -> bytes:
    """What follows a label: a value outside a loop, nothing but a comment inside one."""
    given = next((i for i, word in enumerate(words) if word.startswith(b"#")), len(words)) - 1
    if given != (0 if loop else 1):
        label = words[0].decode("utf-8", "replace")
        wanted = "no value after a label of a loop" if loop else "one value after a label (in quotes if it has spaces)"
        raise DataError(f"{where}: {label}: there must be {wanted}, found {given}. The file is malformed.")
    return b"" if loop else words[1]


def _malformed(where: str, word: bytes) -> NoReturn:
    if word == b"loop_":
        raise DataError(f"{where}: a block holds one table, found a second one. Give each table its own data_ block.")
    raise DataError(f"{where}: expected a label, loop_ or a comment, found {word.decode('utf-8', 'replace')[:40]!r}.")


def _split_tail(body: bytes) -> tuple[bytes, bytes]:
    """The rows, and the blank and comment lines after the last one."""
    end = len(body)
    while end:
        start = body.rfind(b"\n", 0, end - 1) + 1
        line = body[start:end].strip()
        if line and not line.startswith(b"#"):
            break
        end = start
    return body[:end], body[end:]


def _regular(rows: bytes, where: str) -> bytes:
    """The rows without blank and comment lines."""
    if _IRREGULAR.search(rows) is None:
        return rows
    lines = [line for line in rows.split(b"\n") if line.strip() and not line.lstrip().startswith(b"#")]
    if any(line.lstrip().startswith(b"loop_") for line in lines):
        _malformed(where, b"loop_")
    return _joined(lines)


def _joined(lines: list[bytes]) -> bytes:
    return b"\n".join([*lines, b""])


def _check_fields(block: Block) -> None:
    """Refuse rows whose number of fields is not that of the labels."""
    wanted = len(block.labels)
    if block._quoted:
        counts = np.array([len(block.fields(line)) for line in block.rows.splitlines()], np.int64)
    else:
        counts = _field_counts(block.rows)
    bad = np.flatnonzero(counts != wanted)
    if len(bad):
        raise DataError(
            f"{block.where}: every row must have {wanted} fields, one for each label; row {bad[0]} "
            f"(line {block.line + bad[0]}) has {counts[bad[0]]} ({len(bad)} such rows). The file is damaged or no "
            "simple STAR table."
        )


def _field_counts(rows: bytes) -> np.ndarray:
    """Number of fields in each line."""
    data = np.frombuffer(rows, np.uint8)
    counts, start = [], 0
    while start < len(data):
        end = len(data) if len(data) - start <= CHUNK else rows.rfind(b"\n", start, start + CHUNK) + 1
        end = end if end > start else rows.find(b"\n", start) + 1
        blank = data[start:end] <= 32
        begins = np.flatnonzero(blank[:-1] & ~blank[1:]) + 1
        line_ends = np.flatnonzero(data[start:end] == 10)
        seen = np.searchsorted(begins, line_ends) + (not blank[0])
        counts.append(np.diff(seen, prepend=0))
        start = end
    return np.concatenate(counts) if counts else np.zeros(0, np.int64)


def _unquoted(field: bytes) -> bytes:
    quoted = len(field) > 1 and field[:1] in (b'"', b"'") and field[-1:] == field[:1]
    return field[1:-1] if quoted else field


def _written(entry: str) -> bytes:
    """A field as it is to be written: in quotes if it is empty or holds blanks."""
    field = entry.encode("utf-8", "surrogateescape")
    return field if field and not field.split()[1:] and field == field.strip() else b'"' + field + b'"'
