"""The free energy along a path of maps by chains: `path_model` of `hetmodels.analysis.free_energy`, set up to mix."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer import NUTS

from hetmodels.analysis.free_energy import Profile, path_model
from hetmodels.analysis.mixtures import Mixture, mixture_weights
from hetmodels.plain import PlainProblem
from hetmodels.posterior import Posterior
from inference.diagnostics import warnings
from inference.engine import Log, run
from inference.kernels import Pathfinder
from inference.mcmc import MCMC

# the errors of the images' places tie neighbouring nodes together: a diagonal mass matrix takes ten times the steps
KERNEL = partial(NUTS, dense_mass=True, max_tree_depth=(6, 10), target_accept_prob=0.9)


@dataclasses.dataclass(frozen=True, eq=False)
class PathResult:
    """What images say of the population along a path.

    Attributes:
        profile: draws of the free energy.
        weights: the most likely weights of the nodes without a prior, with the certificate of how near they are
            (Frank-Wolfe gap, nats per image).
        doubts: what is wrong with the chains, in sentences.
    """

    profile: Profile
    weights: Mixture
    doubts: list[str]


def profile(
    log_density: np.ndarray, *, key: Array, draws: int = 500, warmup: int = 500, chains: int = 4, log: Log | None = None
) -> PathResult:
    """Sample the free energy along a path, and reweight its nodes by maximum likelihood.

    Args:
        log_density: log p(y_i | x_m) up to a constant per particle, (particles, nodes), `path_likelihood`'s.
        key: random key.
        draws: of each chain.
        warmup: transitions before.
        chains: number of chains.
        log: where to report.
    """
    engine = MCMC(draws=draws, warmup=warmup, chains=chains, kernel=KERNEL, starts=Pathfinder())
    density = jnp.asarray(log_density - log_density.max(1, keepdims=True), jnp.float32)
    result = run(engine, PlainProblem(path_model, {"log_density": density}), key=key, log=log)
    posterior = Posterior(None, result.draws, False, stats=result.stats)
    return PathResult(Profile.of(posterior), mixture_weights(log_density), warnings(posterior))
