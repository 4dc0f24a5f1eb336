"""Objects as text and arrays: how a family is written into a file, and built again without pickle.

A frozen dataclass becomes its dotted name and its fields in JSON; arrays are kept apart, by the path of their field.
Reading imports the module that is named and calls dataclasses; nothing else in a file is ever run.
"""

import dataclasses
import importlib
import inspect
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hetmodels.errors import DataError, did_you_mean


class Inexpressible(ValueError):
    """An object that has no form as text and arrays; the message says which field."""


def describe(value: Any) -> tuple[str, dict[str, np.ndarray]]:
    """The JSON text of an object, and the arrays that stand in it by path.

    Raises:
        Inexpressible: naming the field that is neither number, text, container, array, dataclass nor importable.

    >>> from hetmodels.families.protocol import Frame
    >>> text, arrays = describe(Frame(4, 2.5, (1.0, 0.5)))
    >>> rebuild(text, arrays)
    Frame(size=4, spacing=2.5, power=(1.0, 0.5))
    """
    arrays: dict[str, np.ndarray] = {}
    return json.dumps(_encode(value, "", arrays), allow_nan=False), arrays


def rebuild(text: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """The object that was described.

    Raises:
        DataError: if its class cannot be imported, or has other fields than those described.
    """
    return _decode(json.loads(text), arrays)


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _encode_array(value, path, arrays)
    if isinstance(value, tuple | list):
        if type(value) not in (tuple, list):
            raise Inexpressible(f"{path or 'it'} is a {type(value).__name__}")
        return {type(value).__name__: [_encode(v, f"{path}.{i}".lstrip("."), arrays) for i, v in enumerate(value)]}
    if isinstance(value, dict):
        return {
            "dict": [
                [_encode(k, path, arrays), _encode(v, f"{path}.{k}".lstrip("."), arrays)] for k, v in value.items()
            ]
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        inner = {name: _encode(v, f"{path}.{name}".lstrip("."), arrays) for name, v in fields.items()}
        return {"object": _dotted(type(value), path), "fields": inner}
    return {"name": _dotted(value, path)}


def _encode_array(value: Any, path: str, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) or np.dtype(value.dtype).kind not in "biufc":
        raise Inexpressible(f"{path or 'it'} is an array of {value.dtype}")
    name = path or "value"
    arrays[name] = np.asarray(value)
    kind = "jax" if isinstance(value, jax.Array) else "numpy" if isinstance(value, np.ndarray) else "scalar"
    return {"array": name, "kind": kind}


def _dotted(value: Any, path: str) -> str:
    """module:qualified.name of a class or function that can be found again under it."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str)) or "<" in name:
        raise Inexpressible(f"{path or 'its class'} ({value!r}) has no name that can be imported")
    try:
        found = _find(f"{module}:{name}")
    except DataError as error:
        raise Inexpressible(str(error)) from error
    if found is not value:
        raise Inexpressible(f"{path or 'its class'}: {module}.{name} is something else by now")
    return f"{module}:{name}"


def _find(dotted: str) -> Any:
    module, _, name = dotted.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        where = "a script, which is gone" if module == "__main__" else f"the module {module}"
        raise DataError(f"{name} was defined in {where}, and cannot be found there now ({error})") from error
    return found


def _decode(entry: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(entry, dict):
        return entry
    if "object" in entry:
        return _construct(entry["object"], {k: _decode(v, arrays) for k, v in entry["fields"].items()})
    if "array" in entry:
        value = arrays[entry["array"]]
        return jnp.asarray(value) if entry["kind"] == "jax" else value[()] if entry["kind"] == "scalar" else value
    if "dict" in entry:
        return {_decode(k, arrays): _decode(v, arrays) for k, v in entry["dict"]}
    if "name" in entry:
        return _find(entry["name"])
    if "float" in entry:
        return float(entry["float"])
    kind, values = next(iter(entry.items()))
    return (tuple if kind == "tuple" else list)(_decode(v, arrays) for v in values)


def _construct(dotted: str, values: dict[str, Any]) -> Any:
    cls = _find(dotted)
    name = dotted.replace(":", ".")
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise DataError(f"{name} must be a dataclass, and is none in the version installed")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for field in values:
        if field not in known:
            raise DataError(f"{name} has no field {field!r} in the version installed.{did_you_mean(field, known)}")
    nothing = dataclasses.MISSING
    needed = [f.name for f in known.values() if f.default is nothing and f.default_factory is nothing]
    missing = [field for field in needed if field not in values]
    if missing:
        raise DataError(f"{name} needs {', '.join(missing)} in the version installed, which the file lacks")
    # a class with an __init__ of its own, as a layer of a network, takes other arguments than its fields
    arguments = {field: v for field, v in values.items() if known[field].init}
    if set(inspect.signature(cls).parameters) != {field for field, f in known.items() if f.init}:
        return _filled(object.__new__(cls), values)
    try:
        made = cls(**arguments)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} refuses the values of the file: {error}") from error
    return _filled(made, {field: v for field, v in values.items() if field not in arguments})


def _filled(made: Any, values: dict[str, Any]) -> Any:
    for field, value in values.items():
        object.__setattr__(made, field, value)
    return made
