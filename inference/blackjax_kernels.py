"""BlackJAX's samplers as kernels of `MCMC`: `MCMC(kernel=NUTS())`. A transition and its adaptation are one step.

BlackJAX is imported where it is used: importing it starts JAX's devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from hetmodels.plain import Sites
from hetmodels.tree import pytree
from inference.kernels import Density, on_data

_DIVERGENCE = 1000.0


@pytree
class ChainState:
    """Where the chains stand; all fields but `done` lead with the chains.

    Attributes:
        keys: random keys.
        inner: BlackJAX's states.
        tuned: what the adaptation has found so far.
        last: statistics of the last transition.
        done: transitions of each chain so far.
    """

    keys: Array
    inner: Any
    tuned: Any
    last: dict[str, Array]
    done: Array


@pytree
class Windows:
    """Adaptation of one chain: step size by dual averaging, mass matrix from windows of draws.

    Attributes:
        averaging: of the step size.
        matrix: of the inverse mass matrix, with the one being collected.
        step_size: in use.
        inverse_mass: in use, (dims,) or (dims, dims).
    """

    averaging: Any
    matrix: Any
    step_size: Array
    inverse_mass: Array


class _Stepped:
    """Chains of a BlackJAX kernel, one transition at a time; what its subclasses share."""

    at_once = False

    def __init__(self, density: Density, warmup: int) -> None:
        self.density, self.warmup = density, warmup

    def warm(self, state: ChainState, data: Any) -> ChainState:
        """Nothing: the kernel adapts in its first transitions."""
        return state

    def renewed(self, state: ChainState, data: Any) -> ChainState:
        """See `Chains.renewed`."""
        log_p, slope = jax.vmap(jax.value_and_grad(self._target(data)))(state.inner.position)
        return dataclasses.replace(state, inner=state.inner._replace(logdensity=log_p, logdensity_grad=slope))

    def positions(self, state: ChainState) -> Sites:
        """See `Chains.positions`."""
        return state.inner.position

    def stats(self, state: ChainState) -> dict[str, Array]:
        """See `Chains.stats`."""
        return state.last

    def _target(self, data: Any) -> Callable[[Sites], Array]:
        return lambda x: self.density(x, data)


@dataclasses.dataclass(frozen=True)
class NUTS:
    """The No-U-Turn sampler with Stan's window adaptation (Hoffman and Gelman 2014, JMLR 15), by BlackJAX.

    Attributes:
        target_accept_prob: acceptance that the step size is adapted to.
        dense_mass: adapt a full mass matrix instead of a diagonal one.
        max_tree_depth: doublings of a trajectory at most.
    """

    target_accept_prob: float = 0.8
    dense_mass: bool = False
    max_tree_depth: int = 10

    def bind(self, density: Density, warmup: int) -> "NutsChains":
        """See `Kernel.bind`."""
        return NutsChains(self, density, warmup)


class NutsChains(_Stepped):
    """See `NUTS`."""

    def __init__(self, settings: NUTS, density: Density, warmup: int) -> None:
        from blackjax import nuts
        from blackjax.adaptation.mass_matrix import mass_matrix_adaptation
        from blackjax.adaptation.step_size import dual_averaging_adaptation
        from blackjax.adaptation.window_adaptation import build_schedule

        super().__init__(density, warmup)
        self.settings, self.kernel = settings, nuts.build_kernel(divergence_threshold=_DIVERGENCE)
        self.start, self.schedule = nuts.init, build_schedule(max(warmup, 1))
        self.matrix = mass_matrix_adaptation(not settings.dense_mass)
        self.averaging = dual_averaging_adaptation(settings.target_accept_prob)

    def init(self, keys: Array, x: Sites, data: Any) -> ChainState:
        """See `Chains.init`."""

        def one(key: Array, x: Sites, data: Any) -> tuple[Any, Windows, dict[str, Array]]:
            inner = self.start(x, self._target(data))
            matrix = self.matrix[0](sum(leaf.size for leaf in jax.tree.leaves(x)))
            step = jnp.ones(())
            tuned = Windows(self.averaging[0](1.0), matrix, step, matrix.inverse_mass_matrix)
            first = jax.eval_shape(lambda: self._read(*self._move(key, inner, tuned, data), step))
            zero = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), first)
            return inner, tuned, zero

        inner, tuned, last = on_data(jax.vmap(one, in_axes=(0, 0, None)), keys, x, data=data)
        return ChainState(keys, inner, tuned, last, jnp.zeros((), jnp.int32))

    def sample(self, state: ChainState, data: Any) -> ChainState:
        """See `Chains.sample`."""
        pairs = jax.vmap(jax.random.split)(state.keys)
        move = jax.vmap(lambda key, inner, tuned: self._move(key, inner, tuned, data))
        inner, info = move(pairs[:, 1], state.inner, state.tuned)
        last = jax.vmap(self._read)(inner, info, state.tuned.step_size)
        tuned = state.tuned
        if self.warmup:
            adapt = jax.vmap(self._adapt, in_axes=(None, 0, 0, 0))
            at = (state.done, state.tuned, inner.position, info.acceptance_rate)
            tuned = jax.lax.cond(state.done < self.warmup, adapt, lambda done, tuned, *_: tuned, *at)
        return ChainState(pairs[:, 0], inner, tuned, last, state.done + 1)

    def _move(self, key: Array, inner: Any, tuned: Windows, data: Any) -> tuple[Any, Any]:
        depth = self.settings.max_tree_depth
        return self.kernel(key, inner, self._target(data), tuned.step_size, tuned.inverse_mass, depth)

    def _read(self, inner: Any, info: Any, step_size: Array) -> dict[str, Array]:
        return {
            "diverging": info.is_divergent,
            "acceptance_rate": info.acceptance_rate,
            "n_steps": info.num_integration_steps,
            "tree_depth": info.num_trajectory_expansions,
            "reached_max_treedepth": info.num_trajectory_expansions >= self.settings.max_tree_depth,
            "energy": info.energy,
            "lp": inner.logdensity,
            "step_size": step_size,
        }

    def _adapt(self, done: Array, tuned: Windows, position: Sites, acceptance: Array) -> Windows:
        """One step of Stan's schedule: the step size always, draws in slow windows, the mass matrix at their ends."""
        (_, collect, finish), (restart, average, averaged) = self.matrix, self.averaging
        slow, ends = self.schedule[done]
        averaging = average(tuned.averaging, acceptance)
        matrix = jax.lax.cond(slow == 1, lambda m: collect(m, position), lambda m: m, tuned.matrix)
        new = Windows(averaging, matrix, jnp.exp(averaging.log_step_size), tuned.inverse_mass)

        def renewed(old: Windows) -> Windows:
            matrix, begun = finish(old.matrix), restart(averaged(old.averaging))
            return Windows(begun, matrix, jnp.exp(begun.log_step_size), matrix.inverse_mass_matrix)

        new = jax.lax.cond(ends == 1, renewed, lambda old: old, new)
        last = jnp.exp(new.averaging.log_step_size_avg)
        return dataclasses.replace(new, step_size=jnp.where(done == self.warmup - 1, last, new.step_size))


@dataclasses.dataclass(frozen=True)
class MCLMC:
    """Microcanonical Langevin dynamics without rejection (Robnik et al. 2023, JMLR 24), by BlackJAX.

    Fast in many dimensions. Its draws have a bias set by the error of the energy that the tuning allows: compare it
    with NUTS where exactness matters. It needs at least two unknown numbers.

    Attributes:
        thinning: steps of the dynamics between two draws.
        energy_variance: variance of the energy error per dimension that the step size is tuned to.
    """

    thinning: int = 10
    energy_variance: float = 5e-4

    def bind(self, density: Density, warmup: int) -> "MclmcChains":
        """See `Kernel.bind`."""
        return MclmcChains(self, density, warmup)


class MclmcChains(_Stepped):
    """See `MCLMC`."""

    at_once = True

    def __init__(self, settings: MCLMC, density: Density, warmup: int) -> None:
        import blackjax

        super().__init__(density, warmup)
        integrator = blackjax.mcmc.integrators.isokinetic_mclachlan
        self.settings, self.kernel = settings, blackjax.mcmc.mclmc.build_kernel(integrator=integrator)

    def init(self, keys: Array, x: Sites, data: Any) -> ChainState:
        """See `Chains.init`."""
        import blackjax

        dims = sum(leaf[0].size for leaf in jax.tree.leaves(x))
        keys, pairs = (jax.vmap(lambda key, i=i: jax.random.split(key)[i])(keys) for i in (0, 1))
        start = jax.vmap(lambda key, x, data: blackjax.mclmc.init(x, self._target(data), key), in_axes=(0, 0, None))
        inner = on_data(start, pairs, x, data=data)
        count, root = len(keys), jnp.sqrt(1.0 * dims)
        tuned = blackjax.adaptation.mclmc_adaptation.MCLMCAdaptationState(
            jnp.full(count, root), jnp.full(count, root / 4), jnp.ones((count, dims))
        )
        zero = jnp.zeros(count)
        last = {"lp": zero, "step_size": zero, "energy_error": zero, "diverging": jnp.zeros(count, bool)}
        return ChainState(keys, inner, tuned, last, jnp.zeros((), jnp.int32))

    def warm(self, state: ChainState, data: Any) -> ChainState:
        """Find step size, decoherence length and scales in `warmup` draws' worth of steps."""
        import blackjax

        def one(key: Array, inner: Any) -> tuple[Any, Any]:
            steps = max(self.warmup * self.settings.thinning, 20)
            inner, tuned, _ = blackjax.mclmc_find_L_and_step_size(
                self.kernel, round(steps / 0.33), inner, key, self._target(data),
                desired_energy_var=self.settings.energy_variance,
            )  # fmt: skip
            return inner, tuned

        pairs = jax.vmap(jax.random.split)(state.keys)
        inner, tuned = jax.vmap(one)(pairs[:, 1], state.inner)
        last = state.last | {"lp": inner.logdensity, "step_size": tuned.step_size}
        return ChainState(pairs[:, 0], inner, tuned, last, state.done + self.warmup)

    def sample(self, state: ChainState, data: Any) -> ChainState:
        """See `Chains.sample`."""

        def one(key: Array, inner: Any, tuned: Any) -> tuple[Any, dict[str, Array]]:
            def step(inner: Any, key: Array) -> tuple[Any, tuple[Array, Array]]:
                inner, info = self.kernel(
                    key, inner, self._target(data), tuned.inverse_mass_matrix, tuned.L, tuned.step_size
                )
                return inner, (info.energy_change, ~info.nonans)

            inner, (error, bad) = jax.lax.scan(step, inner, jax.random.split(key, self.settings.thinning))
            last = {"lp": inner.logdensity, "step_size": tuned.step_size}
            return inner, last | {"energy_error": jnp.abs(error).max(), "diverging": bad.any()}

        pairs = jax.vmap(jax.random.split)(state.keys)
        inner, last = jax.vmap(one)(pairs[:, 1], state.inner, state.tuned)
        return ChainState(pairs[:, 0], inner, state.tuned, last, state.done + 1)
