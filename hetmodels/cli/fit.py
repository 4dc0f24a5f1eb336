"""`hetmodels fit PARTICLES --family F --engine E -o RUN`: the main job."""

import argparse
import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hetmodels.cli.common import emit, json_option, number, open_particles, particle_options
from hetmodels.cli.config import as_table, check_prefixes, options_table, set_options, settings_of, write_config
from hetmodels.errors import DataError, UsageError
from hetmodels.run_directory import RunDirectory, available_memory, require_space

_log = logging.getLogger("hetmodels.fit")
_FEWEST = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("particles", type=Path, metavar="PARTICLES", help="particle table: .star, .cs or .pkl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--family", default="homogeneous", help="kind of heterogeneity (`hetmodels families`)")
    parser.add_argument("--engine", default="em", help="inference engine (`hetmodels engines`)")
    parser.add_argument(
        "--pose", choices=("known", "refine"), default="known",
        help="take the file's poses as exact, or as centres of a Gaussian prior",
    )  # fmt: skip
    parser.add_argument("--seed", type=number(int, 0), default=0, metavar="S", help="seed of all random numbers")
    parser.add_argument(
        "--halves", action=argparse.BooleanOptionalAction, default=None,
        help="keep half sets apart and report their FSC (default: for homogeneous under em)",
    )  # fmt: skip
    parser.add_argument(
        "--holdout", type=number(float, 0, 0.9), default=0.1, metavar="F",
        help="fraction of the particles that do not train (default 0.1)",
    )  # fmt: skip
    parser.add_argument("--contrast", type=number(float, 0, above=0), metavar="SD", help="spread of the images' contrast about 1")
    parser.add_argument("--outliers", action="store_true", help="add a junk component")
    parser.add_argument("--reference", type=Path, action="append", metavar="MAP.mrc", help="map to start from; once per class")
    parser.add_argument("--ini-high", type=number(float, above=0), metavar="A", help="low-pass of the references [Å]")
    parser.add_argument("--start", type=Path, metavar="RUN", help="start from the result of another run")
    parser.add_argument("--given", type=Path, metavar="RUN", help="take spectra and noise from another run")
    parser.add_argument("--mask", type=Path, metavar="MASK.mrc", help="mask of the FSC; made from the map if left out")
    particle_options(parser)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("cpu", "gpu"), help="where to compute (default: a GPU if there is one)")
    machine.add_argument("--threads", type=number(int, 1), metavar="N", help="CPU threads of the array operations")
    machine.add_argument("--memory", type=number(float, above=0), metavar="GB", help="memory that the run may take")
    machine.add_argument("--budget", type=number(float, above=0), metavar="S", help="stop after about S seconds")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="only say what the run would take")
    set_options(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Fit, and leave the results in the folder."""
    _choose_machine(args)
    job = _Job(args)
    if args.dry_run:
        return job.forecast()
    folder = RunDirectory.create(args.output, overwrite=args.overwrite, resume=args.resume)
    with folder.lock(), folder.logging():
        require_space(folder.path, job.disk())
        if not args.resume:
            write_config(folder.config, options_table(args) | {"family": as_table(job.family, args.family), "engine": as_table(job.engine, args.engine)})
        posterior = job.fit(folder)
        from hetmodels.cli.results import write_results

        metrics = write_results(folder, posterior, job.particles, job.mask())
    emit(args, {"run": str(folder.path), **metrics}, _goodbye(args, folder, posterior, metrics))
    return 0


def _choose_machine(args: argparse.Namespace) -> None:
    """Set what JAX reads when it is imported; compiled programs are kept in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hetmodels" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    if args.device:
        os.environ["JAX_PLATFORMS"] = "cpu" if args.device == "cpu" else "cuda"
    if args.threads:
        flags = f"--xla_cpu_multi_thread_eigen={'true' if args.threads > 1 else 'false'} intra_op_parallelism_threads={args.threads}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()


class _Job:
    """The objects of one run."""

    def __init__(self, args: argparse.Namespace) -> None:
        from hetmodels.cli import settings
        from hetmodels.families import FAMILIES
        from inference import ENGINES
        from inference.engine import require

        self.args = args
        values = settings_of(args)
        check_prefixes(values, ("family", "engine"))
        self.family = settings.build(settings.load(args.family, FAMILIES, "family"), "family", values)
        self.engine = settings.build(settings.load(args.engine, ENGINES, "engine"), "engine", values)
        require(self.family, self.engine)
        self.particles = open_particles(args)
        self._check()
        self.halves = args.halves if args.halves is not None else (args.family, args.engine) == ("homogeneous", "em")

    def _check(self) -> None:
        from hetmodels.data.checks import problems

        particles = self.particles
        for note in particles.notes:
            _log.info("%s", note)
        if particles.metadata is not None:
            found = problems(particles.metadata)
            for problem in found:
                if problem.severity == "warning":
                    _log.warning("%s", problem.text)
            errors = [problem.text for problem in found if problem.severity == "error"]
            if errors:
                raise DataError(" ".join(errors))
        particles.require_even()
        particles.require_poses()
        if len(particles) < _FEWEST:
            _log.warning(
                "%d particles make no map: expect noise. Thousands are needed at usual signal-to-noise ratios.", len(particles)
            )

    def options(self) -> dict[str, Any]:
        """Arguments of `inference.fit` beyond model, data and engine."""
        import jax

        from hetmodels.observation import Contrast, Known, Outliers, Refined
        from hetmodels.posterior import Posterior

        args = self.args
        if args.start and args.reference:
            raise UsageError("fit: give --start or --reference, not both.")
        return {
            "key": jax.random.key(args.seed),
            "pose": Known() if args.pose == "known" else Refined(),
            "contrast": None if args.contrast is None else Contrast(args.contrast),
            "outliers": Outliers() if args.outliers else None,
            "halves": self.halves,
            "holdout": args.holdout,
            "start": Posterior.load(RunDirectory.open(args.start).posterior) if args.start else self._references(),
            "given": None if args.given is None else Posterior.load(RunDirectory.open(args.given).posterior),
        }

    def _references(self) -> Any:
        """Maps to start from, on the data's grid and low-passed."""
        if not self.args.reference:
            return None
        import numpy as np

        from hetmodels.analysis import fourier
        from hetmodels.data.maps import read_map

        maps = []
        for path in self.args.reference:
            values, spacing, _ = read_map(path)
            self._same_grid(path, values.shape[0], spacing)
            if self.args.ini_high:
                gain = fourier.lowpass_gain(values.shape[0], self.particles.spacing, self.args.ini_high)
                values = fourier.filtered(values, gain)
            maps.append(values)
        return np.stack(maps)

    def _same_grid(self, path: Path, size: int, spacing: float) -> None:
        mine = self.particles
        if size != mine.size or abs(spacing / mine.spacing - 1) > 0.01:
            raise DataError(
                f"{path}: the map has {size} voxels of {spacing:.4g} Å, the particles {mine.size} pixels of "
                f"{mine.spacing:.4g} Å; both must agree. Resample the map, or choose --box and --pixel to match."
            )

    def mask(self) -> Any:
        """The mask of the FSC, if one was given."""
        from hetmodels.analysis import masks

        return None if self.args.mask is None else masks.from_file(self.args.mask, self.particles.size, self.particles.spacing)

    def disk(self) -> int:
        """Bytes that the run will write at most."""
        voxels = self.particles.size**3
        return 4 * voxels * 40 + 400 * len(self.particles) + self._state_bytes() * 2

    def _state_bytes(self) -> int:
        estimate = getattr(self.engine, "state_bytes", None)
        return 0 if estimate is None else estimate(self.family, self.particles.size, self.halves)

    def memory(self) -> dict[str, int]:
        """Bytes that the run will take, predicted."""
        from hetmodels.data.memory import predict_memory

        rows = min(self.engine.batch_size, len(self.particles))
        parts = predict_memory(self.particles, rows)
        engine = self._state_bytes() + rows * self.particles.disc.pixels * 400
        return {**parts, "engine": engine, "total": parts["total"] + engine}

    def check_memory(self) -> None:
        """Refuse before the work what cannot fit."""
        need, free = self.memory()["total"], available_memory()
        limit = min(free, self.args.memory * 1e9) if self.args.memory else free
        if need > limit:
            raise DataError(
                f"fit: the run needs about {need / 1e9:.1f} GB of memory and {limit / 1e9:.1f} GB are there. A smaller box "
                f"needs less: --box {self._smaller_box(limit / need)}; or fewer particles per step: --set engine.batch_size=100."
            )

    def _smaller_box(self, ratio: float) -> int:
        return max(16, int(self.particles.size * ratio ** (1 / 3)) // 2 * 2 - 2)

    def fit(self, folder: RunDirectory) -> Any:
        """Run the engine with its progress bar, trace and checkpoints."""
        import inference
        from inference.checkpoint import Checkpoint

        self.check_memory()
        args = self.args
        options = self.options()
        store = Checkpoint(folder.checkpoint)
        resume = args.resume and store.exists()
        done = store.rows() if resume else 0
        with folder.tracing(done) as trace, _progress(args) as log:
            return inference.fit(
                self.family, self.particles, self.engine, log=log(trace.append), checkpoint=folder.checkpoint,
                resume=resume, budget=args.budget, **options,
            )  # fmt: skip

    def forecast(self) -> int:
        """Print memory and time: predicted bytes, and the measured time of one step times their number."""
        import jax

        from hetmodels.observation import Radial
        from inference.fitting import make_problem

        options = self.options()
        key = options.pop("key")
        problem = make_problem(self.family, self.particles, noise=Radial(), **options)
        state = self.engine.init(key, problem)
        batch = next(iter(problem.batches(0, key, self.engine.batch_size, self.engine.shuffle)))
        steps = self.engine.passes(problem) * max(1, -(-problem.size // max(self.engine.batch_size, 1)))
        seconds = []
        for _ in range(2):
            begun = time.perf_counter()
            state, _info = self.engine.step(key, problem, state, batch)
            jax.block_until_ready([leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)])
            seconds.append(time.perf_counter() - begun)
        memory = self.memory()
        facts = {"memory_bytes": memory, "seconds_at_most": seconds[1] * steps, "steps": steps, "disk_bytes": self.disk()}
        text = (
            f"memory: about {memory['total'] / 1e9:.2f} GB\ntime: at most {seconds[1] * steps:.0f} s of steps "
            f"({steps} of {seconds[1]:.2f} s), compilation {seconds[0]:.1f} s\ndisk: at most {self.disk() / 1e9:.2f} GB"
        )
        emit(self.args, facts, text)
        return 0


@contextlib.contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Any]:
    """A maker of `Log` objects that draw one progress bar on standard error."""
    from tqdm import tqdm

    from inference.engine import Log

    quiet = args.json or not sys.stderr.isatty()
    with tqdm(total=1, unit="step", disable=quiet, dynamic_ncols=True, file=sys.stderr) as bar:
        last: dict[str, Any] = {}

        def show(done: int, total: int, info: dict[str, Any]) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def make(record: Any) -> Log:
            def both(row: dict[str, Any]) -> None:
                record(row)
                last.update(row)
                words = {}
                if "objective" in row and row["objective"] is not None:
                    words["objective"] = f"{row['objective']:.3f}"
                if row.get("resolution"):
                    words["resolution"] = f"{row['resolution']:.1f} Å"
                bar.set_postfix(words)
                _log.info("pass %s: %s", row["pass"] + 1, ", ".join(f"{k} {v}" for k, v in words.items()))

            return Log(both, show)

        yield make


def _goodbye(args: argparse.Namespace, folder: RunDirectory, posterior: Any, metrics: dict[str, Any]) -> str:
    """What was done, where it is, and what to do next."""
    lines = []
    if "resolution_0143" in metrics:
        lines.append(f"resolution at FSC = 0.143: {metrics['resolution_0143']:.1f} Å (masked, phase-randomised)")
    if "class_shares" in metrics:
        lines.append("class shares: " + ", ".join(f"{v:.3f}" for v in metrics["class_shares"]))
    if "log_likelihood_held_out" in metrics:
        lines.append(f"held-out log likelihood: {metrics['log_likelihood_held_out']:.2f} nats per particle over noise alone")
    if not posterior.provenance.get("complete", True):
        lines.append("the time budget ended the run early; go on with --resume")
    lines.append(f"everything is in {folder.path}/: maps in volumes/, per-particle results in particles.star, posterior.nc")
    lines.append(f"next: open {folder.volumes}/*.mrc in ChimeraX, or `hetmodels volumes {shlex.quote(str(folder.path))} -o maps --classes`")
    truth = args.particles.with_suffix(".truth")
    if truth.is_dir():
        lines.append(f"next: hetmodels evaluate {shlex.quote(str(folder.path))} --truth {shlex.quote(str(truth))}")
    return "\n".join(lines)
