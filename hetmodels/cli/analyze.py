"""`hetmodels analyze RUN`: RUN/report.html, what a run found and how far to trust it."""

import argparse
import importlib.util
import json
import logging
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetmodels.cli.common import emit, json_option
from hetmodels.cli.run_folder import particles_of
from hetmodels.errors import DataError, UsageError
from hetmodels.run_directory import RunDirectory, write_text

if TYPE_CHECKING:
    from hetmodels.analysis.image_check import ImageCheck
    from hetmodels.analysis.leakage import Leakage
    from hetmodels.posterior import Posterior
    from hetmodels.report.source import Sampler, Source

_log = logging.getLogger("hetmodels.analyze")
LIBRARIES = ("jinja2", "matplotlib", "plotly")
_QUICK, _FEWEST = 32, 16  # box up to which all rows of the leakage test are taken, and the fewest in larger ones
_TABLE, _PLOTTED = 40, 6  # numbers of the chains that are listed, and plotted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run_path", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="where to (default RUN/report.html)")
    parser.add_argument("--datadir", type=Path, metavar="DIR", help="folder of the images, if they moved since the fit")
    parser.add_argument("--no-images", action="store_true", help="do not look at the images")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Write the report and say in a few lines what stands at its top."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"analyze: the report needs {', '.join(missing)}. Install: pip install {' '.join(missing)}")
    from hetmodels.report.headline import answers
    from hetmodels.report.page import page

    folder = RunDirectory.open(args.run_path)
    output = args.output or folder.report
    if output.is_dir():
        raise UsageError(f"analyze: {output} is a folder; give -o the name of a file.")
    source = gather(folder, args)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page(source))
    found = answers(source)
    data = {
        "report": output,
        "bytes": output.stat().st_size,
        "answers": {a.question: {"value": a.value, "words": a.words, "commands": a.commands} for a in found},
        "flagged": {flag.name: int(flag.rows.sum()) for flag in source.flags},
        "warnings": source.warnings,
    }
    lines = [f"{a.question + ':':<16}{a.value}. {a.words}" for a in found]
    emit(args, data, "\n".join([*lines, f"report {output}"]))
    return 0


def gather(folder: RunDirectory, args: argparse.Namespace) -> "Source":
    """Everything the report is made from.

    Raises:
        DataError: if the run has no result of a family on particles.
    """
    from hetmodels.analysis.rows import Rows
    from hetmodels.posterior import Posterior
    from hetmodels.report.source import Source
    from inference.diagnostics import warnings

    if not folder.posterior.is_file():
        raise DataError(f"{folder.posterior}: the run has no result yet. Has the fit ended? Go on with fit --resume.")
    posterior = Posterior.load(folder.posterior)
    if posterior.family is None or not posterior.local:
        raise DataError(
            f"{folder.posterior}: a report is about particles, and this is the posterior of a model function. Read "
            "it with Posterior.load(…).to_arviz()."
        )
    rows = Rows.read(folder.particles)
    if posterior.particles != len(rows.table):
        raise DataError(
            f"{folder.path}: posterior.nc and particles.star must be of the same particles, found "
            f"{posterior.particles} and {len(rows.table)}. Restore the table that the fit wrote."
        )
    metrics = json.loads(folder.metrics.read_text(encoding="utf-8")) if folder.metrics.is_file() else {}
    config = folder.config.read_text(encoding="utf-8")
    command = shlex.join(["hetmodels", "fit", "--config", str(folder.config), "-o", f"{folder.path}-again"])
    return Source(
        folder,
        posterior,
        rows,
        metrics,
        config,
        command,
        _star_text(folder, posterior.particles),
        *_images(folder, posterior, args),
        _sampler(posterior),
        tuple(warnings(posterior)),
    )


def _images(
    folder: RunDirectory, posterior: "Posterior", args: argparse.Namespace
) -> "tuple[ImageCheck | str, Leakage | None]":
    """The checks against the images, or in a sentence why there are none."""
    from hetmodels.analysis.image_check import check_images
    from hetmodels.analysis.leakage import ROWS, leakage

    if args.no_images:
        return "they were left out by --no-images.", None
    try:
        particles = particles_of(folder, args.datadir)
        check = check_images(posterior, particles)
    except (DataError, UsageError) as error:
        _log.warning("the images were not looked at: %s", error)
        return str(error), None
    rows = int(ROWS * min(1.0, (_QUICK / particles.size) ** 3))
    return check, leakage(posterior, particles, rows=max(rows, _FEWEST))


def _star_text(folder: RunDirectory, particles: int) -> str | None:
    """The particle table without the columns of the run, if its last loop is that of the particles."""
    import numpy as np

    from hetmodels.cli.select import open_source

    source = open_source(folder.path, ".star")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "particles.star"
        source.write(path, np.arange(particles), False)
        text = path.read_text(encoding="utf-8")
    rows = [line for line in text.rpartition("loop_")[2].splitlines() if line.strip() and not line.startswith("_")]
    return text if len(rows) == particles else None


def _sampler(posterior: "Posterior") -> "Sampler | None":
    """Tables and draws of the chains; None for a point estimate."""
    if posterior.point:
        return None
    import numpy as np

    from hetmodels.report.source import Sampler
    from inference.diagnostics import functionals, summary

    table = summary(posterior)
    drawn = np.asarray(table["sd"] > 0)
    table = table[drawn] if drawn.any() else table  # the others were given
    worst = table.sort_values("r_hat" if "r_hat" in table else "ess_bulk", ascending="r_hat" not in table)
    rows: dict[str, dict[str, Any]] = worst.head(_TABLE).to_dict("index")
    flat = {
        f"{name}[{i}]" if v[0, 0].size > 1 else name: part
        for name, v in functionals(posterior).items()
        for i, part in enumerate(np.moveaxis(v.reshape(*v.shape[:2], -1), -1, 0))
    }
    labels = np.array(list(flat))[drawn] if drawn.any() else list(flat)
    order = dict(zip(table.index, labels, strict=True))
    draws = {label: flat[order[label]] for label in list(rows)[:_PLOTTED]}
    return Sampler(rows, draws, posterior.stats.get("energy"))
