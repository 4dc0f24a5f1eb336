"""Whether a posterior can be trusted: R-hat and effective sample sizes of what does not depend on a gauge, in words.

Draws of a map, of the order of classes or of the signs of latent axes may wander between equivalent values although
the chains have converged. A family may therefore have a method `functionals(shared) -> dict` of numbers that do not;
without it, a map is represented by its power per shell, summed over maps, and all other shared values by themselves.
"""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer import log_likelihood

from hetmodels.arviz_bridge import ess, rhat
from hetmodels.container import TRAINING, Axes
from hetmodels.imaging.ball import Ball
from hetmodels.plain import PlainProblem
from hetmodels.posterior import Posterior

if TYPE_CHECKING:
    import pandas as pd

Draws = dict[str, np.ndarray]

RHAT = 1.01  # Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, Bayesian Analysis 16
ESS = 100  # of each chain, likewise
BFMI = 0.3
DEEPEST = 0.01  # of the trajectories
EVIDENCE_SE = 0.5  # nats
GAP = 1.0  # nats per particle
_FEWEST = 4


def functionals(posterior: Posterior) -> Draws:
    """What is diagnosed, by name, (chains, draws, …)."""
    own = getattr(posterior.family, "functionals", None)
    if own is not None:
        return _each_draw(own, posterior.shared)
    axes = Axes(posterior)
    names = {name: axes.names("posterior", name, v.shape) for name, v in posterior.shared.items()}
    maps = {name for name, dims in names.items() if dims[-3:] == ("z", "y", "x")}
    found = {k: v for k, v in posterior.shared.items() if k not in maps and TRAINING not in names[k]}

    def powers(shared: dict[str, Any]) -> dict[str, Any]:
        ball = Ball(next(iter(shared.values())).shape[-1])
        return {f"{k} power": ball.power(v).reshape(-1, ball.shells).sum(0) for k, v in shared.items()}

    return found | (_each_draw(powers, {k: posterior.shared[k] for k in sorted(maps)}) if maps else {})


def _each_draw(function: Callable[[dict[str, Any]], dict[str, Any]], shared: Draws) -> Draws:
    chains, draws = next(iter(shared.values())).shape[:2]
    compiled = jax.jit(function)
    found = [compiled({k: jnp.asarray(v[place]) for k, v in shared.items()}) for place in np.ndindex(chains, draws)]
    stacked = {k: np.stack([np.asarray(one[k]) for one in found]) for k in found[0]}
    return {k: v.reshape(chains, draws, *v.shape[1:]) for k, v in stacked.items()}


def summary(posterior: Posterior) -> "pd.DataFrame":
    """A row per number of `functionals`: mean, sd, and of draws ess_bulk, ess_tail and r_hat.

    Numbers that do not vary have no r_hat; neither has a single chain.
    """
    import pandas as pd

    found, axes = functionals(posterior), Axes(posterior)
    rows = [label for name, v in found.items() for label in _labels(axes, name, v.shape)]
    columns = {"mean": _joined({k: v.mean((0, 1), dtype=np.float64) for k, v in found.items()})}
    if not posterior.point:
        columns["sd"] = _joined({k: v.std((0, 1), ddof=1, dtype=np.float64) for k, v in found.items()})
        columns |= {k: np.where(columns["sd"] > 0, _joined(v), np.nan) for k, v in _convergence(found).items()}
    return pd.DataFrame(columns, index=rows)


def _labels(axes: Axes, name: str, shape: tuple[int, ...]) -> list[str]:
    """'weights[class 1]', or 'x[0]' where the axis has no name of its own."""
    names, lengths = axes.names("posterior", name, shape)[2:], shape[2:]
    plain = f"{name}_dim_"
    parts = [
        [f"{'' if axis.startswith(plain) else f'{axis} '}{c}" for c in axes.coordinate(axis, n)]
        for axis, n in zip(names, lengths, strict=True)
    ]
    return [f"{name}[{', '.join(place)}]" if place else name for place in itertools.product(*parts)]


def _joined(values: Draws) -> np.ndarray:
    return np.concatenate([np.ravel(v) for v in values.values()]) if values else np.empty(0)


def _convergence(found: Draws) -> dict[str, Draws]:
    chains, draws = next((v.shape[:2] for v in found.values()), (0, 0))
    if draws < _FEWEST:
        return {}
    numbers = {"ess_bulk": ess(found, "bulk"), "ess_tail": ess(found, "tail")}
    return numbers | ({"r_hat": rhat(found)} if chains > 1 else {})


def warnings(posterior: Posterior) -> list[str]:
    """What is wrong with a posterior, one sentence each with its cure; [] if nothing was found."""
    found = []
    if not posterior.provenance.get("complete", True):
        found.append("The time budget ended the run before the engine was done; resume it.")
    if not all(np.isfinite(v).all() for v in posterior.shared.values()):
        return [
            *found,
            "Some shared values are not finite; check the data with `hetmodels inspect`, lower the step size.",
        ]
    if posterior.stats:
        found += _of_chains(posterior)
    se = posterior.local.get("log_evidence_se", np.empty(0))
    poor = int((~(se <= EVIDENCE_SE)).sum())
    if poor:
        found.append(
            f"The log evidence of {poor} of {len(se)} particles has a Monte-Carlo standard error above {EVIDENCE_SE} "
            "nats: their latents have a shape that the proposal misses; do not rely on their held-out scores."
        )
    gap = posterior.extra.get("amortization_gap", np.empty(0))
    if len(gap) and gap.mean() > GAP:
        found.append(
            f"The encoder's q loses {gap.mean():.1f} nats per particle against the best of its kind: latents are less "
            "certain than they look; train for more passes (engine.iterations) or with a larger encoder."
        )
    return found


def _of_chains(posterior: Posterior) -> list[str]:
    table, found = summary(posterior), []
    table = table[table["sd"] > 0]  # the others were given
    if posterior.chains == 1:
        found.append("R-hat compares chains and there is only one; run at least 4 (chains=4).")
    if posterior.draws < _FEWEST:
        return [*found, f"{posterior.draws} draws of each chain say nothing about convergence; raise draws."]
    if "r_hat" in table:
        high = table["r_hat"][table["r_hat"] > RHAT]
        if len(high):
            found.append(
                f"R-hat is above {RHAT} for {len(high)} of {len(table)} numbers, most for {high.idxmax()} "
                f"({high.max():.3f}): the chains have not found the same distribution; raise warmup and draws, or "
                "start them from a mode."
            )
    needed = ESS * posterior.chains
    for kind in ("bulk", "tail"):
        low = table[f"ess_{kind}"][table[f"ess_{kind}"] < needed]
        if len(low):
            found.append(
                f"The effective sample size ({kind}) is below {needed} for {len(low)} of {len(table)} numbers, least "
                f"for {low.idxmin()} ({low.min():.0f}): the draws are too few or too alike; raise draws."
            )
    return found + _of_transitions(posterior.stats)


def _of_transitions(stats: Draws) -> list[str]:
    found = []
    diverging = stats.get("diverging", np.zeros((1, 1)))
    count = int(diverging.sum())
    if count:
        found.append(
            f"{count} of {diverging.size} transitions diverged: the draws miss parts of the posterior that are curved "
            "too strongly for the step size; raise target_accept_prob of the kernel, or reparametrise the model."
        )
    full = stats.get("reached_max_treedepth", np.zeros((1, 1)))
    if full.mean() > DEEPEST:
        found.append(
            f"{int(full.sum())} of {full.size} trajectories reached the largest tree depth: they end before they turn, "
            "so that draws are dear and alike; raise max_tree_depth, adapt a full mass matrix (dense_mass=True), or "
            "rescale the parameters."
        )
    energy = stats.get("energy", np.empty((0, 0)))
    if energy.shape[-1] >= _FEWEST:
        moved, spread = (np.diff(energy, axis=1) ** 2).mean(1), np.maximum(energy.var(1), 1e-30)
        fraction = float((moved / spread).min())
        if fraction < BFMI:
            found.append(
                f"The Bayesian fraction of missing information is {fraction:.2f}, below {BFMI}: the chains move "
                "through the energies too slowly to know the tails; reparametrise the model or raise draws."
            )
    return found


def pointwise(problem: PlainProblem, shared: Draws) -> Draws:
    """What ArviZ needs of a model function for `loo` and `compare`, named as in `Posterior.extra`.

    The log likelihood of every observation in each draw, the observed values, and the other arguments.

    Args:
        problem: the function and its arguments.
        shared: draws of its sites, (chains, draws, …).
    """
    draws = {name: jnp.asarray(v) for name, v in shared.items() if name in problem.sites}
    first = handlers.substitute(problem.model, data={name: v[0, 0] for name, v in draws.items()})
    trace = handlers.trace(handlers.seed(first, jax.random.key(0))).get_trace(problem.data)
    seen = {name: site["value"] for name, site in trace.items() if site["type"] == "sample" and site["is_observed"]}
    seen = {name: value for name, value in seen.items() if np.size(value)}
    terms = log_likelihood(problem.model, draws, problem.data, batch_ndims=2)
    found = {f"log_likelihood/{name}": terms[name] for name in seen}
    found |= {f"observed_data/{name}": value for name, value in seen.items()}
    for name, value in problem.data.items():
        known = any(np.array_equal(value, one) for one in seen.values())
        if isinstance(value, jax.Array | np.ndarray) and not known:
            found[f"constant_data/{name}"] = value
    return {name: np.asarray(value) for name, value in found.items()}
