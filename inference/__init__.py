"""Inference engines, and `fit`, the one way in. `ENGINES` maps short names to where they live."""

from typing import Any

ENGINES: dict[str, str] = {
    "em": "inference.em.EM",
    "map": "inference.map.MAP",
    "svi": "inference.svi.SVI",
    "mcmc": "inference.mcmc.MCMC",
    "moments": "inference.moments.Moments",
}

_EXPORTS = {path.rsplit(".", 1)[1]: path.rsplit(".", 1)[0] for path in ENGINES.values()} | {"fit": "inference.fitting"}


def __getattr__(name: str) -> Any:
    """Engines and `fit` are imported when first asked for."""
    if name in _EXPORTS:
        import importlib

        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'inference' has no attribute {name!r}")
