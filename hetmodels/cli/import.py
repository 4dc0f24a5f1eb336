"""`hetmodels import LATENTS PARTICLES -o RUN`: another program's latents, scored under our likelihood."""

import argparse
import logging
from pathlib import Path
from typing import Any

from hetmodels.cli.common import emit, json_option, number, open_particles, particle_options
from hetmodels.cli.machine import machine_options, on_machine
from hetmodels.run_directory import RunDirectory

_log = logging.getLogger("hetmodels.import")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("latents", type=Path, metavar="LATENTS", help="cryoDRGN z.pkl, RECOVAR .npy or 3DVA .cs")
    parser.add_argument("particles", type=Path, metavar="PARTICLES", help="the particles, in the same order")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--maps", type=number(int, 2), default=16, metavar="M", help="maps of the mixture (default 16)")
    parser.add_argument("--given", type=Path, metavar="RUN", help="run of one map on the same particles, to begin with")
    parser.add_argument("--seed", type=number(int, 0), default=0, metavar="S", help="seed of all random numbers")
    parser.add_argument(
        "--holdout", type=number(float, 0, 0.5), default=0.1, metavar="F",
        help="fraction of the particles that are scored only (default 0.1)",
    )  # fmt: skip
    particle_options(parser)
    machine_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Score the latents and write a run that `compare`, `evaluate` and `analyze` read."""
    from hetmodels.data.embeddings import read_latents

    latents = read_latents(args.latents)
    with on_machine(args):
        metrics = _imported(latents, args)
    held = metrics.get("log_likelihood_held_out")
    score = "" if held is None else f"held-out log likelihood: {held:.2f} nats per particle over noise alone\n"
    text = (
        f"{score}The other program may have trained on the held-out particles: their images shaped its latents of "
        f"others at most.\nnext: hetmodels compare {args.output} RUN"
    )
    emit(args, metrics, text)
    return 0


def _imported(latents: Any, args: argparse.Namespace) -> dict[str, Any]:
    from hetmodels.cli import fit, parse
    from hetmodels.cli.rescoring import Imported, rescored
    from hetmodels.cli.results import write_results
    from hetmodels.cli.run_folder import run_folder

    particles = open_particles(args).with_holdout(args.holdout)
    particles.require_even()
    particles.require_poses()
    words = ["fit", str(args.particles), "-o", str(args.output), "--family", "classes", "--seed", str(args.seed)]
    options = parse("fit", fit, words[1:])
    for name, value in vars(args).items():
        if hasattr(options, name) and name not in ("given",):
            setattr(options, name, value)
    tables = {"family": {"name": "classes", "classes": args.maps}, "engine": {"name": "em"}}
    with run_folder(options, tables, particles.data_hash) as folder:
        base = _base(particles, args)
        about = Imported(str(args.latents), args.maps, args.seed)
        return write_results(folder, rescored(latents, particles, base, about), particles, None)


def _base(particles: Any, args: argparse.Namespace) -> Any:
    """One map of the particles, for the noise."""
    import jax

    from hetmodels.families import Homogeneous
    from hetmodels.posterior import Posterior
    from inference import EM, fit

    if args.given is not None:
        return Posterior.load(RunDirectory.open(args.given).posterior)
    _log.info("one map of all particles, for the noise")
    return fit(Homogeneous(), particles, EM(), key=jax.random.key(args.seed), holdout=args.holdout)
