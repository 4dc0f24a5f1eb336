"""From text to objects: `--set engine.iterations=30` sets a field of a dataclass, whose annotation says how to read it.

The settings of a family or engine are the fields of its dataclass; nothing is typed twice.
"""

import dataclasses
import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetmodels.errors import UsageError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a dataclass, as it is listed.

    Attributes:
        name: the field.
        type: its annotation as text.
        default: its default as text; None where a value must be given.
        doc: its line in the class's docstring.
    """

    name: str
    type: str
    default: str | None
    doc: str


def load(name: str, registry: Mapping[str, str], kind: str) -> type:
    """The class behind a short name of the registry or a dotted path (`package.module.Class`).

    Raises:
        UsageError: if there is none, or it is not a dataclass.
    """
    path = registry.get(name, name).replace(":", ".")
    if "." not in path:
        raise UsageError(f"there is no {kind} {name!r}.{did_you_mean(name, registry)}")
    module_name, _, class_name = path.rpartition(".")
    if name not in registry and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise UsageError(f"{kind} {name!r}: there is no module {error.name!r}.") from None
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UsageError(f"{kind} {name!r}: {module_name} has no dataclass {class_name!r}.")
    return cls


def fields(cls: type) -> dict[str, Setting]:
    """The settings of a dataclass, by name."""
    docs = _attribute_docs(inspect.getdoc(cls) or "")
    found = {}
    for field in dataclasses.fields(cls):
        if field.init:
            default: str | None = None
            if field.default is not dataclasses.MISSING:
                default = repr(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                default = repr(field.default_factory())
            found[field.name] = Setting(field.name, _type_name(field.type), default, docs.get(field.name, ""))
    return found


def _type_name(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _attribute_docs(doc: str) -> dict[str, str]:
    """Entries of the 'Attributes:' section of a docstring in Google's style."""
    section = re.search(r"^Attributes:\n((?:[ \t]+.*\n?|\n)*)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in section.group(1).splitlines() if section else ():
        entry = re.match(r" {4}(\w+)(?: \([^)]*\))?: (.*)", line)
        if entry:
            name = entry.group(1)
            found[name] = entry.group(2).strip()
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def build(cls: type, prefix: str, settings: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Any:
    """An object from dotted settings.

    Args:
        cls: the dataclass.
        prefix: "family" or "engine": keys that begin with `prefix.` are for this object, all others are passed over.
        settings: values by dotted key; text as typed, or values of a TOML file. `prefix.name` is the object's own name
            and passed over. `prefix.field` of an object-valued field takes a dotted class name, `prefix.field.x` sets
            a field of that object.
        given: values the program itself supplies; settings beat them.

    Raises:
        UsageError: if a key names no field, or a value does not fit the field.
    """
    own = {key[len(prefix) + 1 :]: value for key, value in settings.items() if key.startswith(prefix + ".")}
    own.pop("name", None)
    known, hints = fields(cls), typing.get_type_hints(cls)
    heads = {key.split(".")[0] for key in own}
    for head in heads:
        if head not in known:
            listed = ", ".join(known) or "none"
            hint = did_you_mean(head, known).split(" Known")[0]
            raise UsageError(f"{prefix}.{head}: {cls.__name__} has no such setting.{hint} Its settings: {listed}.")
    values = dict(given or {})
    for field in dataclasses.fields(cls):
        if field.name in heads:
            values[field.name] = _field_value(field, hints[field.name], f"{prefix}.{field.name}", own)
    missing = [setting.name for setting in known.values() if setting.default is None and setting.name not in values]
    if missing:
        raise UsageError(f"{cls.__name__} needs {', '.join(f'{prefix}.{name}' for name in missing)}.")
    try:
        return cls(**values)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _field_value(field: dataclasses.Field, annotation: Any, key: str, own: Mapping[str, Any]) -> Any:
    nested = {f"{key}.{k[len(field.name) + 1 :]}": v for k, v in own.items() if k.startswith(field.name + ".")}
    if not nested:
        return convert(own[field.name], annotation, key)
    name = own.get(field.name, nested.get(f"{key}.name"))
    if name is not None:
        return build(load(str(name), {}, "class"), key, nested)
    default = field.default if field.default is not dataclasses.MISSING else None
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        current = {f.name: getattr(default, f.name) for f in dataclasses.fields(default) if f.init}
        return build(type(default), key, nested, given=current)
    inside = [kind for kind in _members(annotation) if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    if len(inside) == 1:
        return build(inside[0], key, nested)
    raise UsageError(f"{key} holds no object with settings; give its class first: {key}=package.module.Class.")


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; the annotation itself if it is none."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def convert(value: Any, annotation: Any, key: str) -> Any:
    """A value that fits the annotation, from text as typed or from a TOML value.

    >>> convert("0.1,0.2", tuple[float, ...], "engine.steps")
    (0.1, 0.2)

    Raises:
        UsageError: if it does not fit.
    """
    members = _members(annotation)
    for kind in sorted(members, key=lambda kind: kind is str):
        with_value = _try(value, kind, key)
        if with_value is not _NO:
            return with_value
    wanted = " or ".join("none" if kind is types.NoneType else _type_name(kind) for kind in members)
    raise UsageError(f"{key} must be {wanted}, got {value!r}.")


_NO = object()
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _try(value: Any, kind: Any, key: str) -> Any:
    """The value as this one kind, or _NO."""
    origin = typing.get_origin(kind)
    if kind is types.NoneType:
        return None if value is None or (isinstance(value, str) and value.lower() == "none") else _NO
    if origin is typing.Literal:
        return next((choice for choice in typing.get_args(kind) if str(choice) == str(value)), _NO)
    if origin in (tuple, list):
        return _sequence(value, kind, key)
    if kind is bool:
        return value if isinstance(value, bool) else _WORDS.get(str(value).lower(), _NO)
    if kind in (int, float):
        return _NO if isinstance(value, bool) else _number(value, kind)
    if kind in (str, Path):
        return kind(value) if isinstance(value, str | Path) else _NO
    if isinstance(value, str) and "." in value:
        return build(load(value, {}, "class"), key, {})
    return _NO


def _number(value: Any, kind: type) -> Any:
    try:
        found = kind(value)
    except (TypeError, ValueError):
        return _NO
    return found if found == found and (isinstance(value, str) or found == value) else _NO


def _sequence(value: Any, kind: Any, key: str) -> Any:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, str):
        value = [part.strip() for part in value.strip().strip("[]()").split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        return _NO
    if origin is tuple and Ellipsis not in inside:
        if len(value) != len(inside):
            return _NO
        return tuple(convert(part, each, key) for part, each in zip(value, inside, strict=True))
    return origin(convert(part, inside[0], key) for part in value)
