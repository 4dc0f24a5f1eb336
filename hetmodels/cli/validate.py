"""`hetmodels validate RUN`: does each half of the particles, fitted alone, find the same heterogeneity?"""

import argparse
from pathlib import Path

from hetmodels.cli.common import emit, json_option
from hetmodels.errors import DataError
from hetmodels.run_directory import RunDirectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run_path", type=Path, metavar="RUN", help="folder of a run with a latent")
    parser.add_argument("--datadir", type=Path, metavar="DIR", help="folder of the images, if they moved since the fit")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Fit both half sets with the settings of the run, compare them, and add the result to metrics.json."""
    from hetmodels.cli.machine import on_machine
    from hetmodels.cli.run_folder import options_of

    folder = RunDirectory.open(args.run_path)
    if not folder.posterior.is_file():
        raise DataError(f"{folder.posterior}: the run has no result yet. Has the fit ended? Go on with fit --resume.")
    with on_machine(settings := options_of(folder, args.datadir)):
        from hetmodels.analysis.half_sets import half_sets
        from hetmodels.cli.fit import Job
        from hetmodels.posterior import Posterior
        from inference.half_fits import half_fits

        job, family = Job(settings), Posterior.load(folder.posterior).family
        options = job.options()
        del options["halves"]
        pair = half_fits(family, job.particles, job.engine, **options)
        result = half_sets(*pair)
        (folder.path / "halves").mkdir(exist_ok=True)
        for number, posterior in enumerate(pair, 1):
            posterior.save(folder.path / "halves" / f"half{number}.nc")
        folder.merge_metrics(result.values())
    emit(args, result.values(), f"{result.words}\nadded to {folder.metrics}")
    return 0
