"""Frozen dataclasses that JAX can look into: the form of every object that carries arrays."""

import dataclasses
import html
from collections.abc import Mapping
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
    if not hasattr(cls, "_repr_html_"):
        cls._repr_html_ = _as_html  # type: ignore[attr-defined]
    fields = dataclasses.fields(cls)
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    return jax.tree_util.register_dataclass(cls, data, meta)


def html_table(caption: str, facts: Mapping[str, Any], words: str = "") -> str:
    """What a notebook shows of an object: its name, a sentence, and what is known of it by name."""
    cells = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items()
    )
    note = f'<tr><td colspan="2">{html.escape(words)}</td></tr>' if words else ""
    return f"<table><caption>{html.escape(caption)}</caption>{note}{cells}</table>"


def _as_html(self: Any) -> str:
    """The fields of an object; arrays by shape and type."""
    facts = {f.name: _in_short(getattr(self, f.name)) for f in dataclasses.fields(self)}
    return html_table(type(self).__name__, facts, (type(self).__doc__ or "").split("\n\n")[0])


def _in_short(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{tuple(value.shape)} {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
