"""`hetmodels compare RUN RUN …`: which description of the particles the data support."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetmodels.cli.common import emit, json_option
from hetmodels.errors import UsageError
from hetmodels.run_directory import RunDirectory

if TYPE_CHECKING:
    from hetmodels.analysis.agreement import Agreement
    from hetmodels.analysis.compare import Comparison, Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of at least two runs on one data set"
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, and print the runs best first."""
    from hetmodels.analysis.agreement import agreements
    from hetmodels.analysis.compare import compare
    from hetmodels.posterior import Posterior

    names = [str(path) for path in args.runs]
    if len(names) < 2:
        raise UsageError("compare: give the folders of at least two runs.")
    if len(set(names)) < len(names):
        raise UsageError("compare: a run is given twice; each must be another one.")
    posteriors = {str(path): Posterior.load(_posterior_file(path)) for path in args.runs}
    result = compare(posteriors)
    pairs = agreements({row.run: posteriors[row.run] for row in result.rows})
    emit(args, rows_as_json(result, pairs), table(result, pairs))
    return 0


def _posterior_file(path: Path) -> Path:
    found = RunDirectory.open(path).posterior
    if not found.is_file():
        raise UsageError(f"{path}: the run has no {found.name} to compare. Did it end?")
    return found


def rows_as_json(result: "Comparison", pairs: "tuple[Agreement, ...]") -> list[dict[str, Any]]:
    """The rows by the agreed names, with what else is known of each, such as its agreement with the best."""
    bands = result.bands
    beside = {pair.b: pair for pair in pairs if pair.a == result.rows[0].run}
    found = []
    for row in result.rows:
        entry: dict[str, Any] = {
            "run": row.run,
            "elpd": row.elpd,
            "se": row.se,
            "elpd_diff": row.elpd_diff,
            "elpd_diff_se": row.elpd_diff_se,
            "elpd_diff_se_micrograph": row.elpd_diff_se_unit,
            "monte_carlo_se": row.monte_carlo_se,
            "weight": row.weight,
            "supported": not row.worse,
            "particles": len(result.rows_held_out),
        }
        if bands is not None:
            columns = bands.resolution, bands.differences[row.run], bands.errors[row.run]
            names = ("resolution", "difference", "se")
            entry["bands"] = [dict(zip(names, map(float, band), strict=True)) for band in zip(*columns, strict=True)]
        if row.run in beside:
            pair = beside[row.run]
            shares = {"classes": pair.classes, "latents": pair.latents, "maps": pair.maps, "departures": pair.common}
            shared = [dataclasses.asdict(difference) for difference in pair.shared]
            entry["agreement"] = shares | {"agree": pair.agree, "objections": pair.objections, "shared": shared}
        found.append(entry)
    return found


def table(result: "Comparison", pairs: "tuple[Agreement, ...]") -> str:
    """The comparison in words."""
    width = max(len(row.run) for row in result.rows)
    lines = [
        f"log predictive density of {len(result.rows_held_out)} held-out particles in nats, 0 for noise alone",
        f"{'run':<{width}}{'elpd':>12}{'s.e.':>9}{'difference':>12}{'s.e.':>9}{'weight':>8}",
        *(_line(row, width) for row in result.rows),
    ]
    if result.bands is not None:
        lines += _band_lines(result, width)
    for pair in pairs:
        lines.append(f"{pair.a} and {pair.b}: {pair.words}")
        lines += [f"  {difference.words}" for difference in pair.shared if not difference.clear]
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join([*lines, result.verdict()])


def _line(row: "Row", width: int) -> str:
    numbers = f"{row.elpd:>12.1f}{row.se:>9.1f}{row.elpd_diff:>12.1f}{row.cautious_se:>9.1f}"
    return f"{row.run:<{width}}{numbers}{row.weight:>8.2f}"


def _band_lines(result: "Comparison", width: int) -> list[str]:
    """Differences from the best run by band of resolution."""
    bands = result.bands
    assert bands is not None
    head = "".join(f"{f'{r:.1f} Å':>10}" for r in bands.resolution)
    lines = [
        "differences in nats per particle by resolution, each band given the coarser ones:",
        f"{'':<{width}}{head}",
    ]
    for row in result.rows[1:]:
        lines.append(f"{row.run:<{width}}" + "".join(f"{d:>10.3f}" for d in bands.differences[row.run]))
        lines.append(f"{'  s.e.':<{width}}" + "".join(f"{e:>10.3f}" for e in bands.errors[row.run]))
    return lines
