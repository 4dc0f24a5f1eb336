"""Chains on the free energy along a path of maps, set up so that they mix."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer import NUTS

from hetmodels.plain import PlainProblem
from hetmodels.posterior import Posterior
from inference.engine import Log, run
from inference.kernels import Pathfinder
from inference.mcmc import MCMC

# the errors of the images' places tie neighbouring nodes together: a diagonal mass matrix takes ten times the steps
KERNEL = partial(NUTS, dense_mass=True, max_tree_depth=(6, 10), target_accept_prob=0.9)


def path_posterior(
    model: Callable[..., None],
    log_density: np.ndarray,
    *,
    key: Array,
    draws: int = 500,
    warmup: int = 500,
    chains: int = 4,
    log: Log | None = None,
) -> Posterior:
    """Draws of the free energy along a path.

    Args:
        model: a NumPyro function of `log_density`, such as `hetmodels.analysis.free_energy.path_model`.
        log_density: log p(y_i | x_m) up to a constant per particle, (particles, nodes), see `path_likelihood` there.
        key: random key.
        draws: of each chain.
        warmup: transitions before.
        chains: number of chains.
        log: where to report.
    """
    engine = MCMC(draws=draws, warmup=warmup, chains=chains, kernel=KERNEL, starts=Pathfinder())
    density = jnp.asarray(log_density - log_density.max(1, keepdims=True), jnp.float32)
    result = run(engine, PlainProblem(model, {"log_density": density}), key=key, log=log)
    return Posterior(None, result.draws, False, stats=result.stats, trace=result.trace)
