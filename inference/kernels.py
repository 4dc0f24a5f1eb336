"""What `MCMC` asks of a kernel, and how NumPyro's kernels and starting points fit in."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.infer import HMC, HMCECS
from numpyro.infer.gibbs import Gibbs
from numpyro.infer.util import ParamInfo, initialize_model, potential_energy

from hetmodels.errors import UsageError
from hetmodels.plain import PlainProblem, Sites
from inference.sites import split_arrays

Density = Callable[[Sites, Any], Array]


class Chains(Protocol):
    """A kernel bound to a model: all chains side by side.

    Attributes:
        at_once: whether the kernel adapts in a step of its own, `warm`, rather than in the first transitions.
    """

    at_once: bool

    def init(self, keys: Array, x: Sites | None, data: Any) -> Any:
        """The first state.

        Args:
            keys: a random key per chain.
            x: unconstrained sites to start from, (chains, …); the kernel's own choice if None.
            data: what the model takes.
        """

    def warm(self, state: Any, data: Any) -> Any:
        """The whole warm-up, where the kernel adapts `at_once`; runs inside compiled code."""

    def sample(self, state: Any, data: Any) -> Any:
        """One transition of all chains; runs inside compiled code."""

    def renewed(self, state: Any, data: Any) -> Any:
        """The state with the density that it keeps evaluated anew, on other data; runs inside compiled code."""

    def positions(self, state: Any) -> Sites:
        """Unconstrained sites, (chains, …)."""

    def stats(self, state: Any) -> dict[str, Array]:
        """Statistics of the last transition by ArviZ's names, (chains,); `lp` is always there."""


class Kernel(Protocol):
    """A kernel of one's own: a frozen dataclass of settings."""

    def bind(self, density: Density, warmup: int) -> Chains:
        """The kernel on a log density of unconstrained sites and data, to adapt in so many transitions."""


class Starts(Protocol):
    """Where chains begin."""

    def move(self, key: Array, density: Callable[[Sites], Array], x: Sites) -> Sites:
        """A better point than x for one chain to start from; runs inside compiled code."""


def log_density(problem: PlainProblem) -> Density:
    """The joint log density of a problem's unconstrained sites and some data."""
    model = handlers.seed(problem.model, jax.random.key(0))
    return lambda x, data: -potential_energy(model, (data,), {}, x)


def bound(kernel: Any, problem: PlainProblem, warmup: int) -> Chains:
    """A kernel bound to a problem: one of our own, or what makes a NumPyro kernel of a model."""
    if hasattr(kernel, "bind_problem"):
        return kernel.bind_problem(problem, warmup)
    if hasattr(kernel, "bind"):
        return kernel.bind(log_density(problem), warmup)
    made = kernel(problem.model)
    return CompositeChains(made, warmup) if isinstance(made, Gibbs | HMCECS) else NumpyroChains(made, warmup)


def own_sites(kernel: Any, problem: PlainProblem) -> tuple[str, ...]:
    """Sites that a kernel draws by itself, so that they may be discrete."""
    if hasattr(kernel, "bind") or hasattr(kernel, "bind_problem"):
        return ()
    made = kernel(problem.model)
    if not isinstance(made, Gibbs):
        return ()
    return tuple(name for inner, names in made.blocks if not isinstance(inner, HMC) for name in names or ())


class NumpyroChains:
    """NumPyro's HMC and NUTS, which run many chains by themselves."""

    at_once = False

    def __init__(self, kernel: Any, warmup: int) -> None:
        self.kernel, self.warmup = kernel, warmup

    def init(self, keys: Array, x: Sites | None, data: Any) -> Any:
        """See `Chains.init`."""
        at = None if x is None else _informed(self.kernel.model, x, data)
        return self.kernel.init(keys, self.warmup, at, (data,), {})

    def warm(self, state: Any, data: Any) -> Any:
        """Nothing: the kernel adapts in its first transitions."""
        return state

    def sample(self, state: Any, data: Any) -> Any:
        """See `Chains.sample`."""
        return self.kernel.sample(state, (data,), {})

    def renewed(self, state: Any, data: Any) -> Any:
        """See `Chains.renewed`."""
        model = handlers.seed(self.kernel.model, jax.random.key(0))
        energy, slope = jax.vmap(jax.value_and_grad(lambda z: potential_energy(model, (data,), {}, z)))(state.z)
        return state._replace(potential_energy=energy, z_grad=slope)

    def positions(self, state: Any) -> Sites:
        """See `Chains.positions`."""
        return state.z

    def stats(self, state: Any) -> dict[str, Array]:
        """See `Chains.stats`."""
        found = {
            "diverging": state.diverging,
            "acceptance_rate": state.accept_prob,
            "n_steps": state.num_steps,
            "energy": state.energy,
            "lp": -state.potential_energy,
            "step_size": state.adapt_state.step_size,
        }
        deepest = getattr(self.kernel, "_max_tree_depth", None)
        if deepest is None:
            return found
        limit = deepest[1] if isinstance(deepest, tuple) else deepest  # (warm-up, sampling)
        return found | {"reached_max_treedepth": state.num_steps >= 2**limit - 1}


class CompositeChains(NumpyroChains):
    """NumPyro's kernels of several blocks (HMCGibbs, Gibbs) and HMCECS, which know one chain."""

    def init(self, keys: Array, x: Sites | None, data: Any) -> Any:
        """See `Chains.init`."""
        at = [None if x is None else {n: v[i] for n, v in x.items()} for i in range(len(keys))]
        each = [self.kernel.init(key, self.warmup, one, (data,), {}) for key, one in zip(keys, at, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def sample(self, state: Any, data: Any) -> Any:
        """See `Chains.sample`."""
        return jax.vmap(lambda one: self.kernel.sample(one, (data,), {}))(state)

    def stats(self, state: Any) -> dict[str, Array]:
        """Statistics of the Hamiltonian block."""
        inner = state.hmc_state if hasattr(state, "hmc_state") else state.block_states[-1]
        return super().stats(inner)


def _informed(model: Any, x: Sites, data: Any) -> ParamInfo:
    """Starting points with their energies and gradients, compiled at once rather than operation by operation.

    Raises:
        UsageError: if the density is not finite there.
    """
    seeded = handlers.seed(model, jax.random.key(0))

    def look(x: Sites, data: Any) -> tuple[Array, Sites]:
        return jax.lax.map(jax.value_and_grad(partial(potential_energy, seeded, (data,), {})), x)

    energy, gradient = on_data(look, x, data=data)
    if not bool(jnp.isfinite(energy).all()):
        raise UsageError("mcmc: the density is zero or not finite where the chains start; give start={name: value}.")
    return ParamInfo(x, energy, gradient)


def on_data(function: Callable, *args: Any, data: Any) -> Any:
    """function(*args, data), compiled, with the arrays in the data as arguments of the compiled code."""
    arrays, join = split_arrays(data)
    return jax.jit(lambda arrays, *args: function(*args, join(arrays)))(arrays, *args)


def scattered(problem: PlainProblem, keys: Array) -> Sites:
    """Starting points of finite density, uniform in [-2, 2] per unconstrained number (Stan's way), (chains, …)."""
    model = handlers.seed(problem.model, jax.random.key(0))
    return dict(initialize_model(keys, model, model_args=(problem.whole(),)).param_info.z)


@dataclasses.dataclass(frozen=True)
class Pathfinder:
    """Chains start from the normal that fits best along a quasi-Newton path (Zhang et al. 2022, JMLR 23).

    Of its draws one is chosen by importance weights, and taken if it is not far less probable than the point before.

    Attributes:
        iterations: steps of L-BFGS at most.
        draws: draws by which the normals along the path are compared, and of which one is chosen.
    """

    iterations: int = 30
    draws: int = 50

    def move(self, key: Array, density: Callable[[Sites], Array], x: Sites) -> Sites:
        """See `Starts.move`."""
        import blackjax

        key_fit, key_draw, key_choose = jax.random.split(key, 3)
        fitted, _ = blackjax.pathfinder.approximate(
            key_fit, density, x, num_samples=self.draws, maxiter=self.iterations, maxls=100
        )
        drawn, log_q = blackjax.pathfinder.sample(key_draw, fitted, self.draws)
        log_p = jnp.nan_to_num(jax.vmap(density)(drawn), nan=-jnp.inf)
        chosen = jax.random.categorical(key_choose, jnp.nan_to_num(log_p - log_q, nan=-jnp.inf))
        drawn, dims = jax.tree.map(lambda leaf: leaf[chosen], drawn), sum(leaf.size for leaf in jax.tree.leaves(x))
        good = log_p[chosen] > density(x) - 2 * dims - 10
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), drawn, x)
