"""Frozen dataclasses that JAX can look into: the form of every object that carries arrays."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T", bound=type)


def static(**options: Any) -> Any:
    """A dataclass field that is part of the type (compiled in), not an array."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: T) -> T:
    """Make a class a frozen dataclass and a JAX pytree; fields marked `static` are not traced.

    `__post_init__` may look at static fields only: JAX rebuilds pytrees with tracers inside.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)  # type: ignore[assignment]
    fields = dataclasses.fields(cls)
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    return jax.tree_util.register_dataclass(cls, data, meta)
