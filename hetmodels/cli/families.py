"""`hetmodels families [NAME]`."""

import argparse

from hetmodels.cli.common import emit, json_option
from hetmodels.cli.listing import describe, settings_text, summaries_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a family; all of them if left out")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """List the families, or the settings of one and the engines that can fit it."""
    from hetmodels.families import FAMILIES
    from inference import catalogue

    entries = [describe(name, FAMILIES, "family") for name in ([args.name] if args.name else FAMILIES)]
    table = catalogue.table()
    for entry in entries:
        if entry["name"] in table:
            entry["engines"] = table[entry["name"]]
    if args.name is None:
        text = f"families (hetmodels families NAME for the settings):\n{summaries_text(entries)}"
    else:
        (entry,) = entries
        text = f"{entry['name']}: {entry['summary']}\n\nsettings:\n{settings_text(entry, 'family')}"
        works = [engine for engine, reason in entry.get("engines", {}).items() if reason is None]
        text += f"\n\nengines: {', '.join(works)}" if works else ""
    emit(args, entries if args.name is None else entries[0], text)
    return 0
