"""Lists of families and engines with their settings, read from the classes themselves."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from hetmodels.cli.settings import fields, load


def describe(name: str, registry: Mapping[str, str], kind: str) -> dict[str, Any]:
    """What there is to know of a family or engine: name, class, doc and settings.

    Raises:
        UsageError: if there is none of that name.
    """
    cls = load(name, registry, kind)
    doc = inspect.getdoc(cls) or ""
    return {
        "name": name,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "summary": doc.strip().split("\n\n")[0].replace("\n", " "),
        "settings": list(_settings(cls)),
    }


def _settings(cls: type) -> Iterator[dict[str, Any]]:
    """The settings of a class; behind one that holds an object those of the object, by dotted name."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    for name, setting in fields(cls).items():
        yield dataclasses.asdict(setting)
        inside = defaults[name]
        if dataclasses.is_dataclass(inside) and not isinstance(inside, type):
            for inner in _settings(type(inside)):
                own = {"name": f"{name}.{inner['name']}"}
                if "." not in inner["name"]:
                    own["default"] = repr(getattr(inside, inner["name"]))
                yield inner | own


def settings_text(entry: Mapping[str, Any], prefix: str) -> str:
    """The settings of one entry as lines, each as it is given to --set."""
    lines = []
    for setting in entry["settings"]:
        default = "required" if setting["default"] is None else f"default {setting['default']}"
        lines += [f"  {prefix}.{setting['name']}: {setting['type']} ({default})", f"      {setting['doc']}".rstrip()]
    return "\n".join(line for line in lines if line) or "  no settings"


def summaries_text(entries: list[dict[str, Any]]) -> str:
    """One line for each entry."""
    width = max(len(entry["name"]) for entry in entries)
    return "\n".join(f"  {entry['name']:<{width}}  {entry['summary']}" for entry in entries)


def fits_text(table: Mapping[str, Mapping[str, str | None]]) -> str:
    """The family × engine table with its reasons below."""
    engines = list(next(iter(table.values())))
    width = max(map(len, table))
    lines = ["  " + " " * width + "".join(f"  {engine}" for engine in engines)]
    reasons = []
    for family, row in table.items():
        marks = "".join(f"  {'✓' if row[engine] is None else '✗':<{len(engine)}}" for engine in engines)
        lines.append(f"  {family:<{width}}{marks}".rstrip())
        reasons += [f"  ✗ {family} with {engine}: {reason}" for engine, reason in row.items() if reason]
    return "\n".join([*lines, *reasons])
