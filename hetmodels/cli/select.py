"""`hetmodels select RUN|PARTICLES … -o OUT`: particles back to RELION or cryoSPARC, as they came."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hetmodels.cli.common import emit, json_option, new_output, number
from hetmodels.errors import DataError, UsageError

if TYPE_CHECKING:
    from hetmodels.data.cs import CsFile
    from hetmodels.data.relion import ParticleStar

_OURS = re.compile(
    r"(Latent\d+|LatentSd\d+|Class|ClassProbability|OutlierProbability|HeldOut|LogLikelihood|Input.*)$"
)  # the columns of a run, after _het or het/
Span = tuple[float, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # lets -0.5:0.5 follow an option, as in Python 3.14
    parser.add_argument("particles", type=Path, metavar="RUN|PARTICLES", help="folder of a run, or its particle table")
    rules = parser.add_argument_group("which particles (all rules must hold)")
    rules.add_argument("--class", dest="classes", type=number(int, 1), nargs="+", metavar="K", help="class, from 1")
    rules.add_argument(
        "--cluster",
        type=number(int, 1),
        nargs="+",
        metavar="K",
        help="cluster of the latents, from 1, as in the report",
    )
    rules.add_argument(
        "--box-in-latent",
        type=latent_box,
        metavar="LO:HI,LO:HI",
        help="latent coordinates, axis 1 first; an empty bound or axis is open",
    )
    probability = number(float, 0, 1)
    rules.add_argument("--min-probability", type=probability, metavar="P", help="least probability of the class")
    rules.add_argument("--max-outlier", type=probability, metavar="P", help="largest probability of being an outlier")
    rules.add_argument("--min-outlier", type=probability, metavar="P", help="least of it, to look at what was rejected")
    rules.add_argument(
        "--rows", type=Path, metavar="FILE", help="rows of the table, from 0, one to a line, as the report saves them"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="OUT.star or OUT.cs")
    parser.add_argument("--keep-columns", action="store_true", help="keep the columns that the run added or changed")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    json_option(parser)


def latent_box(text: str) -> list[Span]:
    """`-1:1,:0` -> [(-1, 1), (-inf, 0)].

    >>> latent_box("0:,,2:3")
    [(0.0, inf), (-inf, inf), (2.0, 3.0)]
    """
    spans = []
    for part in text.split(","):
        low, colon, high = part.partition(":")
        if part and not colon:
            raise argparse.ArgumentTypeError(f"each axis is LO:HI, got {part!r}")
        try:
            span = (float(low or "-inf"), float(high or "inf"))
        except ValueError:
            raise argparse.ArgumentTypeError(f"bounds must be numbers, got {part!r}") from None
        if not span[0] <= span[1]:
            raise argparse.ArgumentTypeError(f"the lower bound comes first, got {part!r}")
        spans.append(span)
    return spans


class Source(Protocol):
    """A particle table that a run wrote."""

    @property
    def path(self) -> Path:
        """The file."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray | None:
        """Values of `Class`, `Latent1` and so on, None if absent."""

    def write(self, path: Path, rows: np.ndarray, keep: bool) -> None:
        """Write some rows, as the input of the run had them unless `keep`."""


class StarSource:
    """Rows of a STAR file."""

    def __init__(self, table: "ParticleStar") -> None:
        self.table, self.path = table, table.star.path

    def __len__(self) -> int:
        return len(self.table.block)

    def column(self, name: str) -> np.ndarray | None:
        """A column; classes may be RELION's own."""
        block = self.table.block
        labels = [f"_het{name}"] + ["_rlnClassNumber"] * (name == "Class")
        found = next((label for label in labels if label in block), None)
        return None if found is None else block.number(found)

    def write(self, path: Path, rows: np.ndarray, keep: bool) -> None:
        """Write rows; a class number that the input did not have goes with the columns of the run."""
        from hetmodels.data.export import INPUT

        block = self.table.block
        ours = {label for label in block.labels if label.startswith("_het") and _OURS.match(label[4:])}
        before = {f"_rln{label.removeprefix(INPUT)}": label for label in ours if label.startswith(INPUT)}
        texts = {new: list(block.text(old)[rows]) for new, old in before.items() if new in block}
        if "_hetClass" in ours and "_rlnClassNumber" not in before:
            ours.add("_rlnClassNumber")
        edited = block.edited(rows) if keep else block.edited(rows, texts, ours)
        self.table.star.with_block(edited).write(path)


class CsSource:
    """Rows of a cryoSPARC file."""

    def __init__(self, table: "CsFile") -> None:
        self.table, self.path = table, table.path

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> np.ndarray | None:
        """A column; classes may be cryoSPARC's own, counted from 1 here."""
        from hetmodels.data.export import CS_GROUP

        values = self.table.get(CS_GROUP + name)
        if values is None and name == "Class" and (own := self.table.get("alignments3D/class")) is not None:
            return own.astype(np.int64) + 1
        return values

    def write(self, path: Path, rows: np.ndarray, keep: bool) -> None:
        """Write rows with their uids."""
        from hetmodels.data.cs import write_array
        from hetmodels.data.export import CS_GROUP

        array = self.table.array[rows]
        if keep:
            return write_array(path, array)
        prefix, names = f"{CS_GROUP}Input/", list(array.dtype.names or ())
        kept = [n for n in names if not (n.startswith(CS_GROUP) and _OURS.match(n.removeprefix(CS_GROUP)))]
        out = np.empty(len(array), np.dtype([(name, array.dtype[name]) for name in kept]))
        for name in kept:
            out[name] = array[prefix + name if prefix + name in names else name]
        return write_array(path, out)


def run(args: argparse.Namespace) -> int:
    """Select, write and report."""
    rules = chosen_rules(args)
    if args.output.suffix not in (".star", ".cs"):
        raise UsageError(f"select: the output must end in .star or .cs, got {args.output.name!r}.")
    source = open_source(args.particles, args.output.suffix)
    if args.output.exists() and args.output.samefile(source.path):
        raise UsageError(f"select: {args.output} is the input itself; give another name to -o.")
    output = new_output(args.output, args.overwrite)
    keep = np.ones(len(source), bool)
    for rule in rules:
        keep &= rule(source)
    rows = np.flatnonzero(keep)
    if not len(rows):
        raise DataError(f"{source.path}: none of the {len(source)} particles meets all the rules. Relax them.")
    source.write(output, rows, args.keep_columns)
    data = {"output": str(output), "selected": len(rows), "of": len(source)}
    share = 100 * len(rows) / len(source)
    emit(args, data, f"{len(rows)} of {len(source)} particles ({share:.1f} %)\nparticles {output}")
    return 0


def chosen_rules(args: argparse.Namespace) -> list[Callable[[Source], np.ndarray]]:
    """What each option asks of a row.

    Raises:
        UsageError: if no option was given.
    """
    rules: list[Callable[[Source], np.ndarray]] = []
    if args.classes is not None:
        rules.append(lambda source: _in_classes(source, args.classes))
    if args.cluster is not None:
        rules.append(lambda source: _in_clusters(source, args.particles, args.cluster))
    if args.min_probability is not None:
        rules.append(lambda source: _required(source, "ClassProbability") >= args.min_probability)
    if args.max_outlier is not None:
        rules.append(lambda source: _required(source, "OutlierProbability") <= args.max_outlier)
    if args.min_outlier is not None:
        rules.append(lambda source: _required(source, "OutlierProbability") >= args.min_outlier)
    rules += [_axis_rule(axis, span) for axis, span in enumerate(args.box_in_latent or [], 1)]
    if args.rows is not None:
        rules.append(lambda source: _in_file(source, args.rows))
    if not rules:
        raise UsageError(
            "select: say which particles: --class, --cluster, --box-in-latent, --min-probability, --max-outlier, "
            "--min-outlier or --rows."
        )
    return rules


def _in_classes(source: Source, classes: Sequence[int]) -> np.ndarray:
    values = _required(source, "Class")
    missing = sorted(set(classes) - set(np.unique(values).astype(int).tolist()))
    if missing:
        there = ", ".join(f"{value:g}" for value in np.unique(values)[:20])
        raise DataError(f"{source.path}: no particle is in class {missing[0]}; there are classes {there}.")
    return np.isin(values, classes)


def _in_clusters(source: Source, run_path: Path, numbers: Sequence[int]) -> np.ndarray:
    """Whether each row is in one of the clusters of the run's latents."""
    from hetmodels.analysis.clusters import clusters
    from hetmodels.posterior import Posterior
    from hetmodels.run_directory import RunDirectory

    if not run_path.is_dir():
        raise UsageError(f"select: --cluster needs the folder of a run, got {run_path}.")
    found = clusters(Posterior.load(RunDirectory.open(run_path).posterior))
    if len(found.number) != len(source):
        raise DataError(
            f"{source.path}: must have the particles of the run's posterior.nc, found {len(source)} and "
            f"{len(found.number)}."
        )
    if max(numbers) > len(found):
        raise DataError(f"{run_path}: clusters are counted from 1 and there are {len(found)}, got {max(numbers)}.")
    return np.isin(found.number + 1, numbers)


def _axis_rule(axis: int, span: Span) -> Callable[[Source], np.ndarray]:
    def inside(source: Source) -> np.ndarray:
        values = _required(source, f"Latent{axis}")
        return (values >= span[0]) & (values <= span[1])

    return inside


def _in_file(source: Source, path: Path) -> np.ndarray:
    try:
        rows = np.array([int(word) for word in path.read_text(encoding="utf-8").split()], int)
    except ValueError as error:
        raise DataError(f"{path}: it must hold row numbers, one to a line ({error}).") from None
    if not len(rows) or rows.min() < 0 or rows.max() >= len(source):
        found = f"{rows.min()} to {rows.max()}" if len(rows) else "none"
        raise DataError(
            f"{path}: row numbers must be from 0 to {len(source) - 1}, as {source.path} has; found {found}."
        )
    return np.isin(np.arange(len(source)), rows)


def _required(source: Source, name: str) -> np.ndarray:
    values = source.column(name)
    if values is None:
        raise DataError(
            f"{source.path}: there is no column _het{name} to select by. Give a run of a family that infers it, or "
            "the particles.star or .cs of such a run."
        )
    return values


def open_source(path: Path, suffix: str) -> Source:
    """The table to select from, in the format to be written.

    Raises:
        DataError: if there is none in that format.
    """
    from hetmodels.data.cs import CsFile
    from hetmodels.data.metadata import read_metadata
    from hetmodels.data.relion import ParticleStar
    from hetmodels.run_directory import RunDirectory

    if path.is_dir():
        table = RunDirectory.open(path).particles.with_suffix(suffix)
        if not table.is_file():
            why = "its input was no cryoSPARC file; end -o in .star" if suffix == ".cs" else "has it finished?"
            raise DataError(f"{table}: the run has no such table; {why}.")
        path = table
    metadata = read_metadata(path)
    if isinstance(metadata.table, ParticleStar) and suffix == ".star":
        return StarSource(metadata.table)
    if isinstance(metadata.table, CsFile) and suffix == ".cs":
        return CsSource(metadata.table)
    if suffix == ".star":
        raise DataError(f"{path}: is no STAR file; end -o in .cs, or select from the STAR file beside it.")
    raise DataError(f"{path}: is no cryoSPARC file, so none can be written. End -o in .star.")
