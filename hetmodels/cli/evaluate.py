"""`hetmodels evaluate RUN --truth OUT.truth`: score a run against ground truth."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hetmodels.cli.common import emit, json_option
from hetmodels.run_directory import RunDirectory

if TYPE_CHECKING:
    from hetmodels.analysis.evaluation import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run_path", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--truth", type=Path, required=True, metavar="DIR", help="folder with truth.star and state_001.mrc …"
    )
    parser.add_argument("--mask", type=Path, metavar="MAP.mrc", help="compare maps inside this mask only")
    parser.add_argument(
        "--align", action="store_true", help="align the run's maps to the true ones first, trying both hands"
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Score, add the scores to the run's metrics.json, and print them."""
    from hetmodels.analysis.evaluation import evaluate

    folder = RunDirectory.open(args.run_path)
    result = evaluate(folder, args.truth, args.mask, aligned=args.align)
    values = result.values()
    folder.merge_metrics({name: value for name, value in values.items() if value is not None})
    emit(args, values, table(result, folder, args.truth))
    return 0


def table(result: "Evaluation", folder: RunDirectory, truth: Path) -> str:
    """The scores with floor and ceiling, in words."""

    def cell(value: float | None) -> str:
        return f"{'–' if value is None else format(value, '.4g'):>9}"

    lines = [
        f"{folder.path} against {truth}: {result.particles} particles, {result.states} true states, "
        f"box {result.size}, {result.spacing:.3f} Å",
        f"{'score':<26}{'value':>9}{'floor':>9}{'ceiling':>9}",
    ]
    for s in result.scores:
        lines.append(f"{s.name:<26}{cell(s.value)}{cell(s.floor)}{cell(s.ceiling)}  {s.words}")
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join([*lines, f"added to {folder.metrics}"])
