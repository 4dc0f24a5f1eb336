"""The evidence lower bound, with what belongs to the latents of the particles kept apart; annealing of that part."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.infer.util import compute_log_probs

from hetmodels.plain import Sites
from inference.sites import PLATE


@dataclasses.dataclass(frozen=True)
class Annealing:
    """The weight beta of log p(latents) - log q(latents) in what is climbed (Bowman et al. 2016; Higgins et al. 2017).

    It rises evenly from `start` to `end`. What is reported is the bound itself, whatever beta is.

    Attributes:
        start: beta in the beginning.
        end: beta afterwards; 1 climbs the evidence lower bound.
        passes: passes over the data until then.
    """

    start: float = 0.1
    end: float = 1.0
    passes: float = 3.0

    def __post_init__(self) -> None:
        if min(self.start, self.end, self.passes) < 0:
            raise ValueError(f"Annealing: start, end and passes must not be negative, got {self!r}.")

    def beta(self, passes: Array) -> Array:
        """Beta after so many passes, a fraction included."""
        share = jnp.clip(passes / max(self.passes, 1e-6), 0.0, 1.0)
        return self.start + (self.end - self.start) * share


def bound(
    model: Callable, guide: Callable, params: Sites, key: Array, args: tuple, kwargs: dict[str, Any]
) -> tuple[Array, Array]:
    """One draw of the evidence lower bound, log p(data, x) - log q(x), in two parts whose sum it is.

    Args:
        model, guide: NumPyro functions.
        params: values of the `param` sites.
        key: random key.
        args, kwargs: arguments of model and guide.

    Returns:
        The part of the latents inside the plate over particles, log p - log q of them; and the rest.
    """
    guide_terms, trace = compute_log_probs(handlers.seed(guide, key), args, kwargs, params)
    replayed = handlers.replay(handlers.seed(model, key), trace)
    model_terms, model_trace = compute_log_probs(replayed, args, kwargs, params)
    local = rest = jnp.zeros(())
    for sign, terms, sites in ((1, model_terms, model_trace), (-1, guide_terms, trace)):
        for name, term in terms.items():
            site = sites[name]
            if not site["is_observed"] and any(frame.name == PLATE for frame in site["cond_indep_stack"]):
                local = local + sign * term
            else:
                rest = rest + sign * term
    return local, rest
