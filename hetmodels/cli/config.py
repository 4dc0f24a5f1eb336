"""The file behind `--config run.toml`, and the config.toml by which a run can be repeated."""

import argparse
import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hetmodels.errors import DataError, UsageError, did_you_mean
from hetmodels.run_directory import write_text

NOT_OPTIONS = ("traceback", "config", "assignments", "settings", "json", "overwrite", "resume", "dry_run")


def set_options(parser: argparse.ArgumentParser) -> None:
    """Add `--set KEY=VALUE` and `--config FILE`; `args.settings` will hold what both say, the command line above."""
    parser.add_argument(
        "--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the family or engine, such as family.classes=4; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE.toml", help="options and settings; the command line beats them"
    )
    parser.set_defaults(settings={})


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Dotted settings of `--config` and `--set`; the command line above the file, the last word above earlier ones.

    Raises:
        UsageError: if an assignment is not KEY=VALUE.
    """
    settings = dict(args.settings)
    for text in args.assignments:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise UsageError(f"--set {text}: write KEY=VALUE with a dotted key, such as engine.iterations=30.")
        settings[key.strip()] = value.strip()
    return settings


def check_prefixes(settings: Mapping[str, Any], prefixes: Sequence[str]) -> None:
    """Every dotted key must be for one of the objects that are being built.

    Raises:
        UsageError: if a key begins with none of the prefixes.
    """
    for key in settings:
        head = key.split(".")[0]
        if head not in prefixes:
            raise UsageError(f"{key}: settings begin with {' or '.join(p + '.' for p in prefixes)}"
                             f"{did_you_mean(head, prefixes).split(' Known')[0]}")  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """A TOML file as nested dictionaries.

    Raises:
        DataError: if it is not TOML.
    """
    with open(path, "rb") as file:
        try:
            return tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a TOML file: {error}.") from error


def apply_config(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Make the values of the `--config` file, if the command takes one and it is given, the defaults of the options.

    Top-level keys are options (`box = 64`); tables are dotted settings (`[engine]`, `iterations = 30`), whose `name`
    is the option of that name (`--engine em`). The table `provenance` is for readers and passed over.

    Raises:
        UsageError: if a key names no option, or its value does not fit.
    """
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", *NOT_OPTIONS)}
    if not any(action.dest == "config" for action in parser._actions):
        return
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", nargs="?")
    path = finder.parse_known_args(list(words))[0].config
    if path is None:
        return
    settings: dict[str, Any] = {}
    for key, value in read_config(Path(path)).items():
        if isinstance(value, dict):
            settings |= {} if key == "provenance" else _flat(value, key)
            if key not in actions or "name" not in value:
                continue
            value = value["name"]
        dest = key.replace("-", "_")
        if dest not in actions:
            raise UsageError(f"{path}: there is no option {key!r}.{did_you_mean(dest, actions)}")
        if not _typed_again(actions[dest], words):
            _set_default(parser, actions[dest], value, path)
    parser.set_defaults(settings=settings)


def _typed_again(action: argparse.Action, words: Sequence[str]) -> bool:
    """Whether an option that collects its values stands on the command line, where it replaces those of the file."""
    collects = isinstance(action, argparse._AppendAction)
    return collects and any(word.split("=")[0] in action.option_strings for word in words)


def _set_default(parser: argparse.ArgumentParser, action: argparse.Action, value: Any, path: str) -> None:
    flag = action.nargs == 0
    several = action.nargs in ("+", "*") or (isinstance(action.nargs, int) and action.nargs > 0)
    many = several or isinstance(action, argparse._AppendAction)
    wanted = "true or false" if flag else "a list" if many else "one value"
    if flag != isinstance(value, bool) or many != isinstance(value, list):
        raise UsageError(f"{path}: {action.dest} must be {wanted}, got {value!r}.")
    if not flag:
        try:
            value = [_typed(parser, action, v) for v in value] if many else _typed(parser, action, value)
        except argparse.ArgumentError as error:
            raise UsageError(f"{path}: {action.dest}: {error.message}.") from None
    action.default, action.required = value, False
    if not action.option_strings and not many:
        action.nargs = "?"


def _typed(parser: argparse.ArgumentParser, action: argparse.Action, value: Any) -> Any:
    value = parser._get_value(action, str(value))
    parser._check_value(action, value)
    return value


def _flat(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested tables as dotted keys; the name of a nested object stands at the object's own key."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}.{key}") if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return found


def options_table(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a command as a table for `write_config`; paths become absolute, so that they hold anywhere."""
    table = {key: value for key, value in vars(args).items() if key not in NOT_OPTIONS and value not in (None, [])}
    return {key: _absolute(value) for key, value in table.items()}


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(entry) for entry in value]
    return value.absolute() if isinstance(value, Path) else value


def as_table(thing: Any, name: str | None = None) -> dict[str, Any]:
    """A settings object as a table that `build` reads back.

    Args:
        thing: a dataclass instance whose fields are numbers, text, sequences of them, or further such objects.
        name: the short name; the dotted path of its class if None.
    """
    cls = type(thing)
    table: dict[str, Any] = {"name": name or f"{cls.__module__}.{cls.__qualname__}"}
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if field.init and value is not None:
            table[field.name] = as_table(value) if dataclasses.is_dataclass(value) else value
        elif field.init and field.default is not None:
            table[field.name] = "none"
    return table


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML text of nested dictionaries of numbers, booleans, text, paths and sequences; None is left out.

    >>> print(to_toml({"box": 64, "engine": {"name": "em", "steps": (0.1, 2)}}), end="")
    box = 64
    <BLANKLINE>
    [engine]
    name = "em"
    steps = [0.1, 2]
    """
    return "\n".join(_toml_lines(table, "")).strip("\n") + "\n"


def _toml_lines(table: Mapping[str, Any], prefix: str) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping) and value is not None}
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = prefix + _toml_key(key)
            lines += ["", f"[{name}]", *_toml_lines(value, name + ".")]
    return lines


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_text(key)


def _toml_value(value: Any) -> str:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, str | Path):
        return _toml_text(str(value))
    raise TypeError(f"config.toml cannot hold a value of type {type(value).__name__}: {value!r}.")


def _toml_text(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def write_config(path: Path, table: Mapping[str, Any]) -> None:
    """Write config.toml; `hetmodels fit --config` reads it."""
    write_text(path, to_toml(table))
