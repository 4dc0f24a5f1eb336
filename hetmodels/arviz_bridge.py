"""The only file that knows ArviZ, before and after its version 1.0, which share neither container nor constructors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hetmodels.container import Axes, dataset, groups
from hetmodels.posterior import Posterior

LARGEST = 100_000  # numbers per draw of a variable that `az.summary` still takes in reasonable time
GROUPS = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "observed_data", "constant_data")


def to_arviz(posterior: Posterior, *, maps: bool = False) -> Any:
    """ArviZ's container; see `Posterior.to_arviz`."""
    import arviz as az
    import xarray as xr

    axes, found = Axes(posterior), groups(posterior)
    if not maps:
        found["posterior"] = {k: v for k, v in posterior.shared.items() if not _is_large(axes, k, v)}
    found.setdefault("log_likelihood", _evidence(posterior))
    known = {name: posterior.local[name] for name in ("half", "held_out") if name in posterior.local}
    found["constant_data"] = known | found.get("constant_data", {})
    parts = {group: dataset(axes, group, found[group]) for group in GROUPS if found.get(group)}
    if int(az.__version__.split(".")[0]) < 1:
        return az.InferenceData(**parts)  # type: ignore[arg-type]
    return xr.DataTree.from_dict({f"/{group}": part for group, part in parts.items()})


def _is_large(axes: Axes, name: str, draws: np.ndarray) -> bool:
    names = axes.names("posterior", name, draws.shape)
    return names[-3:] == ("z", "y", "x") or int(np.prod(draws.shape[2:])) > LARGEST


def _evidence(posterior: Posterior) -> dict[str, np.ndarray]:
    """The log evidence of each particle as the one draw there is: at the point, or averaged over draws."""
    if "log_evidence" not in posterior.local:
        return {}
    evidence, held = posterior.local["log_evidence"], posterior.local["held_out"].astype(bool)
    parts = {"training": evidence[~held], "held_out": evidence[held]}
    return {name: part[None, None] for name, part in parts.items() if part.size}


def rhat(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rank-normalised split R-hat (Vehtari et al. 2021) of variables (chains, draws, …)."""
    import arviz as az

    return _computed(az.rhat, draws)


def ess(draws: Mapping[str, np.ndarray], method: str = "bulk") -> dict[str, np.ndarray]:
    """Effective sample size of variables (chains, draws, …); method as in ArviZ: bulk, tail, mean …."""
    import arviz as az

    return _computed(az.ess, draws, method=method)


def _computed(function: Any, draws: Mapping[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    import xarray as xr

    named = {f"v{i}": v for i, v in enumerate(draws.values())}
    variables = {k: (("chain", "draw", *(f"{k}_{i}" for i in range(v.ndim - 2))), v) for k, v in named.items()}
    with np.errstate(divide="ignore", invalid="ignore"):  # numbers that do not vary have no R-hat
        found = function(xr.Dataset(variables), **options)
    return {name: np.asarray(found[k].values) for name, k in zip(draws, named, strict=True)}


def compare_pointwise(scores: Mapping[str, np.ndarray]) -> Any:
    """ArviZ's `compare` of scores of held-out observations, (observations,) each: the table of its version.

    No effective number of parameters is known for such scores; it is given as 0.
    """
    import arviz as az
    import xarray as xr

    new = int(az.__version__.split(".")[0]) >= 1
    found: dict[str, Any] = {}
    for name, values in scores.items():
        each, count = xr.DataArray(values, dims="particle"), len(values)
        elpd, se = float(values.sum()), float(np.sqrt(count * values.var()))
        if new:
            from arviz_stats.utils import ELPDDataLOO

            found[name] = ELPDDataLOO(elpd, se, 0.0, 1, count, "log", False, 0.7, each, xr.zeros_like(each))
        else:
            from arviz.stats.stats_utils import ELPDData

            names = ["elpd_loo", "se", "p_loo", "n_samples", "n_data_points", "warning", "loo_i", "scale", "good_k"]
            found[name] = ELPDData([elpd, se, 0.0, 1, count, False, each, "log", 0.7], index=names)
    return az.compare(found)
