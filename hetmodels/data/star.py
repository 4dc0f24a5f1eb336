"""STAR files as text: every field stays as it was written, and numbers are read only from the columns asked for.

A file is a list of blocks `data_NAME`, each with either one loop (labels, then one row a line) or label–value pairs,
which are kept as a loop of one row. The order of blocks does not matter, nor do `#n` after labels.
"""

import dataclasses
import gzip
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from hetmodels.data.block import FIELD, Block, joined, loop_head
from hetmodels.errors import DataError
from hetmodels.run_directory import replacing

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 1 << 23  # bytes looked at together when fields are counted
_IRREGULAR = re.compile(rb"\n[ \t]*(?:[#\n]|loop_)")


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


def _block_starts(data: bytes) -> list[int]:
    """Where a line consists of one word that begins with data_; a row may begin with such a word, but goes on."""
    starts: list[int] = []
    at = 0 if data.startswith(b"data_") else data.find(b"\ndata_") + 1
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
    loop = False
    labels: list[str] = []
    values: list[bytes] = []
    while at < len(raw):
        end = raw.find(b"\n", at) + 1
        words = FIELD.findall(raw[at:end])
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
    return joined(lines)


def _check_fields(block: Block) -> None:
    """Refuse rows whose number of fields is not that of the labels."""
    wanted = len(block.labels)
    if block.quoted:
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
