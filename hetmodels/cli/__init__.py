"""The command line: `hetmodels COMMAND …`. Each command is a module here, imported only when it is chosen."""

import argparse
import importlib
import sys
from collections.abc import Sequence

import hetmodels
from hetmodels.errors import UsageError, did_you_mean

COMMANDS: dict[str, str] = {
    "demo": "simulate a small molecule, fit it and evaluate the result, in under two minutes",
    "inspect": "what is in a particle file, and what is wrong with it",
    "simulate": "ground-truth particle sets from structures, trajectories or maps",
    "project": "noise-free images of a map at the poses of a particle file",
    "fit": "infer maps, conformations and their uncertainty from particles",
    "volumes": "maps of a run at chosen conformations, particles or classes",
    "analyze": "a report of a run: what it found, how far to trust it, what to do next",
    "profile": "the free energy of the population along a path of maps, with its uncertainty",
    "evaluate": "score a run against ground truth",
    "validate": "whether each half of the particles, fitted alone, finds the same heterogeneity",
    "import": "score the latents of another program under our likelihood, for compare",
    "benchmark": "score families and engines on sets of known heterogeneity, with published scores beside",
    "compare": "which of several runs the data support, by particles that none has trained on",
    "select": "take particles by class, conformation or probability back to RELION or cryoSPARC",
    "families": "the kinds of heterogeneity there are, and their settings",
    "engines": "the inference engines there are, their settings, and which family each can fit",
    "doctor": "check this installation and this machine",
}


def usage() -> str:
    """The text of `hetmodels --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hetmodels COMMAND [options]",
            "",
            "Generative models of cryo-EM heterogeneity, fitted by interchangeable inference engines.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help   this text; `hetmodels COMMAND --help` for the options of a command",
            "  --version    the version",
            "",
            "Begin with `hetmodels demo`, or with `hetmodels inspect particles.star`.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `hetmodels`; those of the process if None.

    Returns:
        Exit status: 0 done, 1 data or run, 2 usage, 130 interrupted.
    """
    from hetmodels.cli.common import guarded

    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(words, lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if not words:
        print(usage(), file=sys.stderr)
        return 2
    if words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"hetmodels {hetmodels.__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        raise UsageError(f"hetmodels: there is no {what} {name!r}.{did_you_mean(name, COMMANDS)}")
    module = importlib.import_module(f"hetmodels.cli.{name}")
    return module.run(parse(name, module, words[1:]))


def parse(name: str, module: object, words: Sequence[str]) -> argparse.Namespace:
    """The options of a command; values of a `--config` file stand below those typed."""
    from hetmodels.cli.common import Parser
    from hetmodels.cli.config import apply_config

    parser = Parser(prog=f"hetmodels {name}", description=f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.")
    module.add_arguments(parser)  # type: ignore[attr-defined]
    parser.add_argument("--traceback", action="store_true", help="on an error, show where in the program it arose")
    apply_config(parser, words)
    return parser.parse_args(words)
