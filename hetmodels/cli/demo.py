"""`hetmodels demo`: the whole way on a small built-in molecule."""

import argparse
import sys
import time
from pathlib import Path

from hetmodels.cli.common import json_option, new_folder

_FIT = ["--set", "engine.iterations=20"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("hetmodels-demo"), metavar="DIR", help="where to work"
    )
    parser.add_argument("-n", type=int, default=3000, metavar="N", help="number of images (default 3000)")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate three conformations, fit one map and three classes, and score both."""
    from hetmodels.cli import main

    new_folder(args.output, args.overwrite)
    begun, folder = time.time(), args.output
    star, again = folder / "particles.star", ["--overwrite"] if args.overwrite else []
    steps = [
        [
            "simulate",
            str(star),
            "--phantom",
            "3",
            "-n",
            str(args.n),
            "--box",
            "32",
            "--pixel",
            "6",
            "--snr",
            "0.1",
            *again,
        ],
        ["inspect", str(star)],
        ["fit", str(star), "--family", "homogeneous", "-o", str(folder / "homogeneous"), *_FIT, *again],
        [
            "fit",
            str(star),
            "--family",
            "classes",
            "--set",
            "family.classes=3",
            "-o",
            str(folder / "classes"),
            *_FIT,
            *again,
        ],
        ["evaluate", str(folder / "homogeneous"), "--truth", str(folder / "particles.truth")],
        ["evaluate", str(folder / "classes"), "--truth", str(folder / "particles.truth")],
    ]
    for number, words in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] hetmodels {' '.join(words)}", file=sys.stderr)
        if args.json and not words[0] == "evaluate":
            words = [*words, "--json"]
        status = main(words)
        if status:
            return status
    print(
        f"\nThe demo took {time.time() - begun:.0f} s. Its runs are in {folder}/; look at {folder}/classes/volumes/*.mrc,",
        file=sys.stderr,
    )
    print("then try your own: hetmodels inspect particles.star; hetmodels fit particles.star -o run", file=sys.stderr)
    return 0
