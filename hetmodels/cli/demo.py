"""`hetmodels demo`: the whole way on a small built-in molecule."""

import argparse
import contextlib
import io
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from hetmodels.cli.common import emit, json_option, new_folder, number
from hetmodels.cli.machine import on_machine

_STATES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add = parser.add_argument
    add("-o", "--output", type=Path, default=Path("hetmodels-demo"), metavar="DIR", help="where to work")
    add("-n", type=number(int, 100), default=3000, metavar="N", help="number of images (default 3000)")
    add("--seed", type=number(int, 0), default=0, metavar="S", help="seed of all random numbers (default 0)")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate three conformations, fit one map and three classes, score both, and report on the classes."""
    new_folder(args.output, args.overwrite)
    begun, folder = time.time(), args.output
    scores: dict[str, Any] = {}
    with on_machine(argparse.Namespace(device=None, threads=None)):
        steps = _steps(folder, args)
        for count, words in enumerate(steps, 1):
            print(f"\n[{count}/{len(steps)}] {shlex.join(['hetmodels', *words])}", file=sys.stderr, flush=True)
            status = _command([*words, "--json"] if args.json else words, quiet=args.json)
            if status:
                return status
            if words[0] == "evaluate":
                scores[Path(words[1]).name] = json.loads((Path(words[1]) / "metrics.json").read_text(encoding="utf-8"))
    seconds = round(time.time() - begun, 1)
    emit(args, {"folder": str(folder), "seconds": seconds, **scores}, in_words(folder, seconds, scores))
    return 0


def _steps(folder: Path, args: argparse.Namespace) -> list[list[str]]:
    """The commands, as they would be typed."""
    star, truth = str(folder / "particles.star"), str(folder / "particles.truth")
    one, three = str(folder / "homogeneous"), str(folder / "classes")
    images = f"--phantom {_STATES} -n {args.n} --box 32 --pixel 6 --snr 0.1 --seed {args.seed}".split()
    fit = ["--seed", str(args.seed), *(["--overwrite"] if args.overwrite else [])]
    classes = ["--family", "classes", "--set", f"family.classes={_STATES}"]
    return [
        ["simulate", star, *images, *fit[2:]],
        ["inspect", star],
        ["fit", star, "--family", "homogeneous", "-o", one, *fit],
        ["fit", star, *classes, "-o", three, *fit],
        ["evaluate", one, "--truth", truth],
        ["evaluate", three, "--truth", truth],
        ["analyze", three],
    ]


def _command(words: list[str], quiet: bool) -> int:
    """Run a command; `quiet` keeps what it writes to standard output from the user."""
    from hetmodels.cli import main

    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        return main(words)


def in_words(folder: Path, seconds: float, scores: dict[str, Any]) -> str:
    """The scores in words, and where things are."""
    one, three = scores["homogeneous"], scores["classes"]
    gain = three["log_likelihood_held_out"] - one["log_likelihood_held_out"]
    return "\n".join(
        [
            "",
            f"In {seconds:.0f} s:",
            f"- one map of all images reached {one['resolution_0143']:.1f} Å between its half maps, and agrees with "
            f"the truth to {one['resolution_05']:.1f} Å;",
            f"- with {_STATES} classes {100 * three['class_accuracy']:.0f} % of the images are in the right one "
            f"(adjusted Rand index {three['ari']:.2f}: 0 is chance, 1 perfect), whose maps agree with the truth to "
            f"{three['resolution_05']:.1f} Å;",
            f"- images that neither fit had seen are {abs(gain):.1f} nats each {'more' if gain > 0 else 'less'} "
            f"probable under the classes: the data {'support' if gain > 0 else 'do not support'} them.",
            f"Everything is in {folder}/: images in particles.star, runs in homogeneous/ and classes/, "
            "their maps in volumes/.",
            f"next: open {folder}/classes/report.html in a browser, and {folder}/classes/volumes/*.mrc in ChimeraX",
            "next: your own images: hetmodels inspect particles.star; hetmodels fit particles.star -o run",
        ]
    )
