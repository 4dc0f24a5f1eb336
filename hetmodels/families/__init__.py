"""Families of heterogeneity: one file each. `FAMILIES` maps short names to where they live."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetmodels.families.classes import Classes as Classes
    from hetmodels.families.homogeneous import Homogeneous as Homogeneous

FAMILIES: dict[str, str] = {
    "homogeneous": "hetmodels.families.homogeneous.Homogeneous",
    "classes": "hetmodels.families.classes.Classes",
}

__all__ = ["FAMILIES", "Classes", "Homogeneous"]


def __getattr__(name: str) -> Any:
    """A family is imported when first asked for."""
    for path in FAMILIES.values():
        module, _, own = path.rpartition(".")
        if own == name:
            return getattr(importlib.import_module(module), own)
    raise AttributeError(f"module 'hetmodels.families' has no attribute {name!r}")
