"""`hetmodels benchmark -o DIR`: sets of known heterogeneity, fitted by any families and engines, and scored."""

import argparse
import contextlib
import io
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from hetmodels.cli.common import emit, json_option, number
from hetmodels.cli.machine import on_machine
from hetmodels.errors import DataError, UsageError

FITS = ("homogeneous:em", "classes:em:classes=8", "subspace:em:dims=4")
KEPT = (
    "fsc_auc_per_image", "fsc_auc_floor", "fsc_auc_ceiling", "ari", "latent_spearman", "coverage_90",
    "unexplained_variance", "log_likelihood_held_out", "resolution_05",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="where to work; what is there is gone on with")
    add("--sets", nargs="+", metavar="SET", help="motion, linker, assembly, species, ensemble (default: all)")
    add(
        "--fit", action="append", dest="fits", metavar="FAMILY:ENGINE[:SETTING=VALUE,…]",
        help=f"what to fit, once per fit; settings are the family's unless engine.… (default: {' '.join(FITS)})",
    )  # fmt: skip
    add("-n", type=number(int, 100), default=2000, metavar="N", help="particles of a set (default 2000)")
    add("--box", type=number(int, 8), default=32, metavar="D", help="image edge in pixels (default 32)")
    add("--pixel", type=number(float, above=0), default=6.0, metavar="A", help="pixel size in Å (default 6)")
    add("--snr", type=number(float, above=0), default=0.1, metavar="S", help="signal over noise variance (default 0.1)")
    add("--states", type=number(int, 2), default=16, metavar="K", help="states of a set (default 16)")
    add("--seed", type=number(int, 0), default=0, metavar="S", help="seed of all random numbers (default 0)")
    add("--structure", type=Path, action="append", metavar="FILE", help="PDB or mmCIF, once per species")
    add("--trajectory", type=Path, metavar="FILE", help="trajectory of the ensemble, with --topology")
    add("--topology", type=Path, metavar="FILE", help="PDB or mmCIF with the atoms of the trajectory")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Make the sets, fit and score what results.jsonl does not hold yet, and print the tables."""
    from hetmodels.data.suite import SUITES

    sets = args.sets or list(SUITES)
    unknown = [name for name in sets if name not in SUITES]
    if unknown:
        raise UsageError(f"benchmark: there is no set {unknown[0]!r}; there are {', '.join(SUITES)}.")
    if bool(args.trajectory) != bool(args.topology):
        raise UsageError("benchmark: --trajectory and --topology go together.")
    fits = [parsed(text) for text in args.fits or FITS]
    args.output.mkdir(parents=True, exist_ok=True)
    lines = Lines(args.output / "results.jsonl", _conditions(args))
    with on_machine(argparse.Namespace(device=None, threads=None)):
        for name in sets:
            star = _made(name, args)
            for words in fits:
                if lines.find(name, words[0]) is None:
                    lines.add({"set": name, "fit": words[0]} | _scored(name, star, words, args))
    found = [row for name in sets for words in fits if (row := lines.find(name, words[0])) is not None]
    emit(args, found, in_words(found, sets, args.output))
    return 0


class Lines:
    """results.jsonl: one line per fit, made under the conditions that each line states."""

    def __init__(self, path: Path, conditions: dict[str, Any]) -> None:
        self.path, self.conditions = path, conditions
        self.rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
        for row in self.rows:
            if row["conditions"] != conditions:
                different = next(k for k in conditions if row["conditions"].get(k) != conditions[k])
                raise DataError(
                    f"{path}: its lines were made with {different} {row['conditions'].get(different)}, asked is "
                    f"{conditions[different]}. Give another -o."
                )

    def find(self, name: str, fit: str) -> dict[str, Any] | None:
        """The line of a fit to a set."""
        return next((row for row in self.rows if row["set"] == name and row["fit"] == fit), None)

    def add(self, row: dict[str, Any]) -> None:
        """Write a line at once, so that a run that is cut goes on after it."""
        row = row | {"conditions": self.conditions}
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


def parsed(text: str) -> tuple[str, list[str]]:
    """A fit as typed, and the words it stands for on the command line.

    >>> parsed("subspace:em:dims=4,engine.iterations=5")[1]
    ['--family', 'subspace', '--engine', 'em', '--set', 'family.dims=4', '--set', 'engine.iterations=5']
    """
    family, _, rest = text.partition(":")
    engine, _, settings = rest.partition(":")
    if not family or not engine or any("=" not in part for part in settings.split(",") if part):
        raise UsageError(f"benchmark: a fit is FAMILY:ENGINE[:SETTING=VALUE,…], got {text!r}.")
    words = ["--family", family, "--engine", engine]
    for part in (p for p in settings.split(",") if p):
        words += ["--set", part if part.startswith("engine.") else f"family.{part}"]
    return text, words


def _conditions(args: argparse.Namespace) -> dict[str, Any]:
    import hetmodels

    kept = {name: getattr(args, name) for name in ("n", "box", "pixel", "snr", "states", "seed")}
    trajectory = None if args.trajectory is None else args.trajectory.name
    given = {"structures": [p.name for p in args.structure or []], "trajectory": trajectory}
    return kept | given | {"version": hetmodels.__version__}


def _made(name: str, args: argparse.Namespace) -> Path:
    """The table of a set, made if it is not there."""
    import numpy as np

    from hetmodels.data.simulate import Recording, simulate
    from hetmodels.data.suite import suite
    from hetmodels.data.views import Microscope, random_views

    star = args.output / f"{name}.star"
    if star.is_file():
        return star
    own = {"species": [w for p in args.structure or [] for w in ("--structure", str(p))]}
    if args.trajectory:
        own["ensemble"] = ["--trajectory", str(args.trajectory), "--topology", str(args.topology)]
    if own.get(name):
        images = f"-n {args.n} --box {args.box} --pixel {args.pixel} --snr {args.snr} --seed {args.seed}".split()
        _command(["simulate", str(star), *own[name], *images])
        return star
    made = suite(name, args.states, args.box, args.pixel, args.seed)
    views = random_views(np.random.default_rng([args.seed, 0]), args.n, Microscope(), 0.0)
    recording = Recording(args.box, args.pixel, args.snr, weights=made.weights)
    simulate(star, list(made.volumes), views, recording, seed=args.seed, latents=made.latents, overwrite=True)
    return star


def _scored(name: str, star: Path, words: tuple[str, list[str]], args: argparse.Namespace) -> dict[str, Any]:
    """Fit, evaluate, and gather what is kept."""
    text, options = words
    run = args.output / f"{name}-{''.join(c if c.isalnum() else '-' for c in text)}"
    command = ["fit", str(star), *options, "-o", str(run), "--seed", str(args.seed), "--overwrite"]
    print(f"{name}: {shlex.join(['hetmodels', *command])}", file=sys.stderr, flush=True)
    begun = time.process_time()
    _command(command)
    seconds = time.process_time() - begun
    truth = star.with_suffix(".truth")
    _command(["evaluate", str(run), "--truth", str(truth)])
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {"run": run.name, "cpu_seconds": round(seconds, 1)} | {k: metrics[k] for k in KEPT if k in metrics}


def _command(words: list[str]) -> None:
    """Run a command of ours, its answer kept from the user.

    Raises:
        DataError: if it fails.
    """
    from hetmodels.cli import main

    with contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise DataError(f"benchmark: hetmodels {words[0]} has failed, see above. What was scored before is kept.")


def in_words(rows: list[dict[str, Any]], sets: list[str], folder: Path) -> str:
    """A table per score with the sets across, and the published one beside it."""
    from hetmodels.cli.published import PER_IMAGE, SETS, SOURCE
    from hetmodels.data.suite import SUITES

    like = dict(zip(SUITES, SETS, strict=True))
    width = max(len(row["fit"]) for row in rows)
    fits = list(dict.fromkeys(row["fit"] for row in rows))
    lines = []
    titles = (
        ("fsc_auc_per_image", "area under the FSC of each image's map, floor: one true mean map, ceiling: the truth"),
        ("log_likelihood_held_out", "log likelihood of held-out particles over noise [nats each]"),
        ("latent_spearman", "rank correlation of true and inferred coordinates"),
    )
    for score, title in titles:
        lines += [title, f"{'':<{width}}" + "".join(f"{name:>12}" for name in sets)]
        for fit in fits:
            cells = [next((r.get(score) for r in rows if r["fit"] == fit and r["set"] == name), None) for name in sets]
            lines.append(f"{fit:<{width}}" + "".join(_cell(value) for value in cells))
        for bound in ("floor", "ceiling") if score == "fsc_auc_per_image" else ():
            cells = [next((r.get(f"fsc_auc_{bound}") for r in rows if r["set"] == name), None) for name in sets]
            lines.append(f"{bound:<{width}}" + "".join(_cell(value) for value in cells))
    lines += ["", f"published: {SOURCE}", f"{'':<30}" + "".join(f"{like[name]:>14}" for name in sets)]
    for method, values in PER_IMAGE.items():
        own = dict(zip(SETS, values, strict=True))
        lines.append(f"{method:<30}" + "".join(_cell(own[like[name]], 14) for name in sets))
    return "\n".join([*lines, f"results {folder / 'results.jsonl'}"])


def _cell(value: float | None, width: int = 12) -> str:
    return f"{'–' if value is None else format(value, '.3f'):>{width}}"
