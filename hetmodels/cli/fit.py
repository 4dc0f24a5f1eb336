"""`hetmodels fit PARTICLES --family F --engine E -o RUN`: the main job."""

import argparse
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hetmodels.cli.common import emit, json_option, number, open_particles, particle_options
from hetmodels.cli.config import as_table, check_prefixes, set_options, settings_of
from hetmodels.cli.machine import machine_options, on_machine
from hetmodels.cli.progress import goodbye
from hetmodels.cli.run_folder import run_folder
from hetmodels.errors import DataError, UsageError
from hetmodels.run_directory import RunDirectory, available_memory, require_space

_log = logging.getLogger("hetmodels.fit")
_FEWEST = 100
_EDGE = 5  # pixels of the soft edge of a spherical mask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("particles", type=Path, metavar="PARTICLES", help="particle table: .star, .cs or .pkl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--family", default="homogeneous", help="kind of heterogeneity (`hetmodels families`)")
    parser.add_argument("--engine", default="em", help="inference engine (`hetmodels engines`)")
    parser.add_argument(
        "--pose", choices=("known", "refine", "search"), default="known",
        help="the file's poses are exact, centres of a Gaussian prior, or unknown",
    )  # fmt: skip
    parser.add_argument("--symmetry", metavar="G", help="point group: C1, C4, D2, T, O, I1 … (under em)")
    parser.add_argument("--seed", type=number(int, 0), default=0, metavar="S", help="seed of all random numbers")
    parser.add_argument(
        "--halves", action=argparse.BooleanOptionalAction, default=None,
        help="keep half sets apart and report their FSC (default: for homogeneous under em)",
    )  # fmt: skip
    parser.add_argument(
        "--holdout", type=number(float, 0, 0.5), default=0.1, metavar="F",
        help="fraction of the particles that do not train (default 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--contrast", type=number(float, above=0), metavar="SD", help="spread of the images' contrast about 1"
    )
    parser.add_argument("--outliers", action="store_true", help="add a junk component")
    parser.add_argument(
        "--reference", type=Path, action="append", metavar="MAP.mrc", help="map to start from; once per class"
    )
    parser.add_argument("--ini-high", type=number(float, above=0), metavar="A", help="low-pass of the references [Å]")
    parser.add_argument("--start", type=Path, metavar="RUN", help="start from the result of another run")
    parser.add_argument(
        "--starts", type=number(int, 1), default=1, metavar="N",
        help="random starts of a family with classes: the best is kept, and whether they agree is told (default 1)",
    )  # fmt: skip
    parser.add_argument("--given", type=Path, metavar="RUN", help="take spectra and noise from another run")
    parser.add_argument(
        "--mask", type=Path, metavar="MASK.mrc",
        help="mask of the FSC, or of the components of a subspace (then none: no mask); made from the data if left out",
    )  # fmt: skip
    parser.add_argument(
        "--mask-diameter", type=number(float, above=0), metavar="A", help="a soft sphere as the mask of the FSC [Å]"
    )
    particle_options(parser)
    machine_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="only say what the run would take")
    set_options(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Fit, and leave the results in the folder."""
    with on_machine(args):
        job = Job(args)
        if args.dry_run:
            return job.forecast()
        job.check_room()
        options = job.options()
        with run_folder(args, job.tables(), job.particles.data_hash) as folder:
            job.speak()
            posterior = job.fit(folder, job.masked(folder, options))
            from hetmodels.cli.results import write_results

            metrics = write_results(folder, posterior, job.particles, job.mask)
        complete = posterior.provenance.get("complete", True)
        answer = {"run": str(folder.path), "complete": complete, **metrics}
        emit(args, answer, goodbye(args, folder, metrics, complete))
    return 0


def _pose_kind(name: str) -> type:
    from hetmodels.observation import Known, Refined, Unknown

    return {"known": Known, "refine": Refined, "search": Unknown}[name]


class Job:
    """The objects of one run."""

    def __init__(self, args: argparse.Namespace) -> None:
        from hetmodels.cli import settings
        from hetmodels.cli.support import with_mask
        from hetmodels.families import FAMILIES
        from inference import ENGINES
        from inference.engine import require

        self.args = args
        values = settings_of(args)
        check_prefixes(values, ("family", "engine", "pose"))
        values |= {"pose.symmetry": args.symmetry} if args.symmetry else {}
        self.pose = settings.build(_pose_kind(args.pose), "pose", values)
        self.family = settings.build(settings.load(args.family, FAMILIES, "family"), "family", values)
        self.engine = settings.build(settings.load(args.engine, ENGINES, "engine"), "engine", values)
        require(self.family, self.engine)
        self.family = with_mask(self.family, args.mask)
        self.halves = args.halves if args.halves is not None else (args.family, args.engine) == ("homogeneous", "em")
        self._check_options()
        self.particles = open_particles(args)
        self.warnings = self._check()
        self.mask = self._read_mask()
        self._plan_memory()

    def _check_options(self) -> None:
        args = self.args
        if args.start and args.reference:
            raise UsageError("fit: give --start or --reference, not both.")
        if args.starts > 1 and (args.start or args.reference or not hasattr(self.family, "grids")):
            raise UsageError(
                "fit: --starts is for families with classes that start at random (--family classes); leave out "
                "--starts, or --start and --reference."
            )
        if args.starts > 1 and hasattr(self.engine, "kept"):
            raise UsageError(f"fit: {args.engine} starts several chains itself (engine.chains); leave out --starts.")
        if args.ini_high and not args.reference:
            raise UsageError("fit: --ini-high is the low-pass of --reference; give a map, or leave it out.")
        finds = hasattr(self.engine, "ab_initio") and self.engine.ab_initio.serves(self.family)
        if args.pose == "search" and not (args.start or args.reference or finds):
            raise UsageError(
                f"fit: --pose search with {args.family} under {args.engine} needs a map to start from: --reference "
                "MAP.mrc (with --ini-high A) or --start. Em finds one by itself."
            )
        mask = args.mask and not hasattr(self.family, "mask")
        if (mask or args.mask_diameter) and not self.halves:
            raise UsageError(
                f"fit: {'--mask' if mask else '--mask-diameter'} is for the FSC of half maps, and this run keeps none. "
                "Leave it out, or --no-halves."
            )
        if args.mask and args.mask_diameter:
            raise UsageError("fit: --mask and --mask-diameter are two masks of the same FSC. Leave out one of them.")

    def _check(self) -> list[str]:
        """Refuse what gives no map; returns warnings."""
        import numpy as np

        from hetmodels.data.checks import problems

        particles = self.particles
        found = [] if particles.metadata is None else problems(particles.metadata)
        errors = [problem.text for problem in found if problem.severity == "error"]
        if errors:
            raise DataError(f"{self.args.particles}: {' '.join(errors)}")
        particles.require_even()
        if self.args.pose != "search":
            particles.require_poses()
        particles = particles.with_holdout(self.args.holdout)
        sizes = np.bincount(particles.half[~particles.held_out], minlength=2)
        warnings = [problem.text for problem in found]
        if self.halves and not sizes.all():
            text = f"half sets need particles in both halves, and {sizes[0]} and {sizes[1]} are there to train"
            if self.args.halves:
                raise DataError(f"{self.args.particles}: {text}. Give --no-halves.")
            self.halves = False
            warnings.append(f"{text}: they are joined, and no resolution is estimated.")
        elif self.halves and sizes.max() > 2 * sizes.min():
            warnings.append(
                f"the half sets have {sizes[0]} and {sizes[1]} particles to train: the smaller one limits what is "
                "learnt of the spectrum. --no-halves joins them."
            )
        if len(particles) < _FEWEST:
            warnings.append(
                f"{len(particles)} particles make no map: expect noise. Thousands are needed at usual signal-to-noise "
                "ratios."
            )
        return warnings

    def speak(self) -> None:
        """Say what was noted about the data."""
        for note in self.particles.notes:
            _log.info("%s", note)
        for text in self.warnings:
            _log.warning("%s", text)

    def tables(self) -> dict[str, Any]:
        """Family and engine for config.toml; what it cannot hold is a default that cannot be set either."""
        found = {"family": as_table(self.family, self.args.family), "engine": as_table(self.engine, self.args.engine)}
        if fields(self.pose):
            found["pose"] = as_table(self.pose, self.args.pose)
        plain = (bool, int, float, str, list, tuple, dict, Path)
        return {name: {k: v for k, v in table.items() if isinstance(v, plain)} for name, table in found.items()}

    def options(self) -> dict[str, Any]:
        """Arguments of `inference.fit` beyond model, data and engine."""
        import jax

        from hetmodels.observation import Contrast, Outliers
        from hetmodels.posterior import Posterior

        args = self.args
        return {
            "key": jax.random.key(args.seed),
            "pose": self.pose,
            "contrast": None if args.contrast is None else Contrast(args.contrast),
            "outliers": Outliers() if args.outliers else None,
            "halves": self.halves,
            "holdout": args.holdout,
            "start": Posterior.load(RunDirectory.open(args.start).posterior) if args.start else self._references(),
            "given": None if args.given is None else Posterior.load(RunDirectory.open(args.given).posterior),
        }

    def _references(self) -> Any:
        """Maps to start from, on the data's grid, low-passed, and of the grey scale of the images."""
        if not self.args.reference:
            return None
        from hetmodels.cli.references import read_maps

        maps, scale = read_maps(self.args.reference, self.particles, self.args.ini_high)
        _log.info("the reference is multiplied by %.3g, which gives it the power of the images' signal", scale)
        return maps

    def _read_mask(self) -> Any:
        """The mask of the FSC, if one was given."""
        from hetmodels.analysis import masks

        path, mine = None if hasattr(self.family, "mask") else self.args.mask, self.particles
        if self.args.mask_diameter:
            return masks.sphere(mine.size, mine.spacing, self.args.mask_diameter / 2, _EDGE * mine.spacing)
        return None if path is None else masks.from_file(path, mine.size, mine.spacing)

    def _limit(self) -> float:
        """Bytes that may be taken."""
        free = available_memory()
        return min(free, self.args.memory * 1e9) if self.args.memory else free

    def _plan_memory(self) -> None:
        """Keep as many images in memory as was allowed; where they do not fit, read them in each pass."""
        from hetmodels.cli.forecast import predicted_memory
        from hetmodels.data.packed import Loading

        need = predicted_memory(*self.parts)
        spare = int(self._limit() - (need["total"] - need["cache"]))
        if self.args.memory or spare < need["cache"]:
            self.particles = replace(self.particles.with_loading(Loading(cache=max(spare, 0))), parent=None)

    @property
    def parts(self) -> tuple[Any, Any, Any, bool]:
        """Family, engine, particles, and whether half sets are kept apart."""
        return self.family, self.engine, self.particles, self.halves

    def check_room(self) -> None:
        """Refuse before the work what memory and disk cannot hold."""
        from hetmodels.cli.forecast import advice, predicted_disk, predicted_memory

        require_space(self.args.output, predicted_disk(*self.parts))
        need, limit = predicted_memory(*self.parts), self._limit()
        if need["total"] > limit:
            raise DataError(
                f"fit: the run needs about {need['total'] / 1e9:.2f} GB of memory, and {limit / 1e9:.2f} GB are "
                f"{'allowed' if limit < available_memory() else 'free'}. {advice(need, limit, *self.parts)}"
            )

    def masked(self, folder: RunDirectory, options: dict[str, Any]) -> dict[str, Any]:
        """Give the components of a subspace their mask; the options of the fit that follow."""
        from hetmodels.cli.support import masked_by_data

        self.family, options = masked_by_data(self.family, self.engine, self.particles, options, folder)
        return options

    def fit(self, folder: RunDirectory, options: dict[str, Any]) -> Any:
        """Run the engine with its progress bar, trace and checkpoints."""
        from hetmodels.cli.starts import fit_starts

        return fit_starts(self.args, folder, (self.family, self.particles, self.engine), options)

    def forecast(self) -> int:
        """Print memory, disk and time: predicted bytes, and measured steps times their number."""
        from hetmodels.cli.forecast import measured_time, predicted_disk, predicted_memory
        from hetmodels.observation import Radial
        from inference.fitting import make_problem
        from inference.pose_table import summed

        self.speak()
        options = self.options()
        key = options.pop("key")
        problem = make_problem(self.family, self.particles, **({"noise": Radial()} | options))
        memory, disk = predicted_memory(*self.parts), predicted_disk(*self.parts)
        seconds = measured_time(self.engine, summed(self.engine, problem), key)
        text = (
            f"memory: about {memory['total'] / 1e9:.2f} GB, {self._limit() / 1e9:.2f} GB are there\n"
            f"time:   at most {seconds['total']:.0f} s in {seconds['passes']} passes, and about "
            f"{seconds['compilation']:.0f} s of compilation\ndisk:   at most {disk / 1e9:.2f} GB"
        )
        emit(self.args, {"memory_bytes": memory, "disk_bytes": disk, "seconds": seconds}, text)
        return 0
