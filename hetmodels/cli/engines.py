"""`hetmodels engines [NAME]`."""

import argparse

from hetmodels.cli.common import emit, json_option
from hetmodels.cli.listing import describe, fits_text, settings_text, summaries_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="an engine; all of them if left out")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """List the engines with the families each can fit, or the settings of one."""
    from inference import ENGINES, catalogue

    entries = [describe(name, ENGINES, "engine") for name in ([args.name] if args.name else ENGINES)]
    if args.name is not None:
        (entry,) = entries
        emit(args, entry, f"{entry['name']}: {entry['summary']}\n\nsettings:\n{settings_text(entry, 'engine')}")
        return 0
    table = catalogue.table()
    text = f"engines (hetmodels engines NAME for the settings):\n{summaries_text(entries)}\n\n"
    text += f"which engine can fit which family:\n{fits_text(table)}"
    emit(args, {"engines": entries, "families": table}, text)
    return 0
