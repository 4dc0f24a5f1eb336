"""Particle sets: tables, image stacks, structures, maps, simulation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetmodels.data.particles import Particles as Particles

__all__ = ["Particles"]


def __getattr__(name: str) -> Any:
    """`Particles` is imported when first asked for, so that reading a table alone does not load JAX."""
    if name == "Particles":
        from hetmodels.data.particles import Particles

        return Particles
    raise AttributeError(f"module 'hetmodels.data' has no attribute {name!r}")
