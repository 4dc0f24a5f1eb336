"""Families of heterogeneity: one file each. `FAMILIES` maps short names to where they live."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetmodels.families.classes import Classes as Classes
    from hetmodels.families.homogeneous import Homogeneous as Homogeneous
    from hetmodels.families.multibody import Multibody as Multibody
    from hetmodels.families.neural_field import NeuralField as NeuralField
    from hetmodels.families.normal_modes import NormalModes as NormalModes
    from hetmodels.families.subspace import Subspace as Subspace

FAMILIES: dict[str, str] = {
    "homogeneous": "hetmodels.families.homogeneous.Homogeneous",
    "classes": "hetmodels.families.classes.Classes",
    "subspace": "hetmodels.families.subspace.Subspace",
    "multibody": "hetmodels.families.multibody.Multibody",
    "neural_field": "hetmodels.families.neural_field.NeuralField",
    "normal_modes": "hetmodels.families.normal_modes.NormalModes",
}

__all__ = ["FAMILIES", "Classes", "Homogeneous", "Multibody", "NeuralField", "NormalModes", "Subspace"]


def __getattr__(name: str) -> Any:
    """A family is imported when first asked for."""
    for path in FAMILIES.values():
        module, _, own = path.rpartition(".")
        if own == name:
            return getattr(importlib.import_module(module), own)
    raise AttributeError(f"module 'hetmodels.families' has no attribute {name!r}")
