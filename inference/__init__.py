"""Inference engines, and `fit`, the one way in. `ENGINES` maps short names to where they live."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.em import EM as EM
    from inference.fitting import fit as fit
    from inference.map import MAP as MAP
    from inference.mcmc import MCMC as MCMC
    from inference.moments import Moments as Moments
    from inference.sgmcmc import SGMCMC as SGMCMC
    from inference.smc import SMC as SMC
    from inference.svi import SVI as SVI
    from inference.variability import Variability as Variability

ENGINES: dict[str, str] = {
    "em": "inference.em.EM",
    "map": "inference.map.MAP",
    "svi": "inference.svi.SVI",
    "mcmc": "inference.mcmc.MCMC",
    "moments": "inference.moments.Moments",
    "variability": "inference.variability.Variability",
}

_MORE = ("inference.smc.SMC", "inference.sgmcmc.SGMCMC", "inference.fitting.fit")  # engines by dotted path, and `fit`

__all__ = ["EM", "ENGINES", "MAP", "MCMC", "SGMCMC", "SMC", "SVI", "Moments", "Variability", "fit"]


def __getattr__(name: str) -> Any:
    """Engines and `fit` are imported when first asked for."""
    for path in [*ENGINES.values(), *_MORE]:
        module, _, own = path.rpartition(".")
        if own == name:
            return getattr(importlib.import_module(module), own)
    raise AttributeError(f"module 'inference' has no attribute {name!r}")
