"""Markov chain Monte Carlo with NumPyro's kernels, whose transitions run in compiled blocks through the one loop."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.infer import NUTS
from numpyro.infer.util import ParamInfo, potential_energy

from hetmodels.errors import UsageError
from hetmodels.plain import PlainProblem, Sites
from hetmodels.problem import ParticleProblem
from hetmodels.tree import pytree
from inference.sites import compiled, local_sites, refuse, settings, split_arrays, start, values

_MANY = 20_000


@pytree
class MCMCState:
    """Where the chains stand.

    Attributes:
        chains: NumPyro's kernel state, leading axis chains.
        positions: unconstrained sites of the last block, (chains, block, …).
        stats: statistics of its transitions, (chains, block).
        filled: transitions in the last block.
        done: transitions of each chain so far, warm-up included.
    """

    chains: Any
    positions: Sites
    stats: dict[str, Array]
    filled: np.ndarray
    done: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class MCMC:
    """Chains on the joint density of all sites, all data at once; step size and mass matrix adapt during warm-up.

    Per-particle latents that the family's structure does not integrate are sampled jointly with the shared values.

    Attributes:
        draws: draws of each chain that are kept.
        warmup: transitions before, in which the kernel adapts.
        chains: number of chains, run side by side.
        kernel: makes the kernel of a model: `numpyro.infer.NUTS` or `HMC`, or a `functools.partial` of them with
            settings.
        block: transitions between two reports.
    """

    draws: int = 1000
    warmup: int = 1000
    chains: int = 4
    kernel: Callable[..., Any] = NUTS
    block: int = 50

    batch_size = 1
    whole = True
    shuffle = False

    def __post_init__(self) -> None:
        if min(self.draws, self.chains, self.block) < 1 or self.warmup < 0:
            raise ValueError(f"MCMC: draws, chains and block must be at least 1, warmup at least 0, got {self!r}.")

    __repr__ = settings

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """Nothing in the model itself; sites that only an optimiser can estimate are refused by `init`."""
        return None

    def passes(self, problem: PlainProblem) -> int:
        """Blocks of warm-up, then of draws."""
        return math.ceil(self.warmup / self.block) + math.ceil(self.draws / self.block)

    def init(self, key: Array, problem: PlainProblem) -> MCMCState:
        """Start the chains at different points.

        Raises:
            UsageError: if `param` sites have no given value, or sites are discrete.
        """
        refuse(problem, "mcmc")
        self._need_given(problem)
        key, key_start = jax.random.split(key)
        keys, data = jax.random.split(key, self.chains), problem.whole()
        arrays, join = split_arrays(data)
        at = None
        if isinstance(problem, ParticleProblem) or problem.started:
            starts = [start(problem, k) for k in jax.random.split(key_start, self.chains)]
            at = _informed(problem, jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), arrays, join)
        kernel = self.kernel(problem.model)
        chains = kernel.init(keys, self.warmup, at, (data,), {})
        compiled(problem, self, lambda: _compile(problem, kernel, join))
        room = (self.chains, self.block)
        return MCMCState(
            chains,
            {name: jnp.zeros((*room, *z.shape[1:]), z.dtype) for name, z in chains.z.items()},
            {name: jnp.zeros(room, value.dtype) for name, value in _stats(chains).items()},
            np.asarray(0),
            np.asarray(0),
        )

    def step(self, key: Array, problem: PlainProblem, state: MCMCState, batch: Any) -> tuple[MCMCState, dict[str, Any]]:
        """One block of transitions; the kernel carries its own random keys."""
        warm, done = int(state.done) < self.warmup, int(state.done)
        count = min(self.block, (self.warmup if warm else self.warmup + self.draws) - done)
        arrays, _ = split_arrays(batch)
        advance, _ = self._compiled(problem)
        chains, positions, stats = advance((state.chains, state.positions, state.stats), count, arrays)
        block = {name: np.asarray(value)[:, :count] for name, value in stats.items()}
        info = {
            "objective": float(block["lp"].mean()) / problem.size,
            "stage": "warm-up" if warm else "sampling",
            "acceptance": float(block["acceptance_rate"].mean()),
            "step_size": float(block["step_size"][:, -1].mean()),
            "gradients": float(block["n_steps"].mean()),
            "diverging": int(block["diverging"].sum()),
        }
        return MCMCState(chains, positions, stats, np.asarray(count), np.asarray(done + count)), info

    def kept(self, problem: PlainProblem, state: MCMCState) -> tuple[Sites, dict[str, Any]]:
        """The draws of the last block, none during warm-up."""
        if int(state.done) <= self.warmup:
            return {}, {}
        count = int(state.filled)
        flat = {name: z[:, :count].reshape(-1, *z.shape[2:]) for name, z in state.positions.items()}
        arrays, _ = split_arrays(problem.whole())
        _, convert = self._compiled(problem)
        draws = {name: v.reshape(self.chains, count, *v.shape[1:]) for name, v in convert(flat, arrays).items()}
        return draws, {name: value[:, :count] for name, value in state.stats.items()}

    def draw(self, key: Array, problem: PlainProblem, state: MCMCState) -> Sites:
        """Where the first chain stands."""
        return values(problem, {name: z[0] for name, z in state.chains.z.items()}, problem.data)

    def _compiled(self, problem: PlainProblem) -> tuple[Callable, Callable]:
        return compiled(problem, self, lambda: None)

    def _need_given(self, problem: PlainProblem) -> None:
        missing = problem.parameters()
        if missing:
            raise UsageError(
                f"mcmc: {', '.join(missing)} {'is a param site' if len(missing) == 1 else 'are param sites'} without a "
                "prior, which no sampler can draw. Give values: given=a Posterior of em, map or svi on the same data, "
                "or given={name: value}; or use an engine that estimates them (em, map, svi)."
            )
        local = local_sites(problem)
        count = problem.size * sum(int(np.prod(problem.sites[n]["value"].shape[1:])) for n in local)
        if count > _MANY:
            warnings.warn(
                f"mcmc: {count} latents of particles are sampled jointly with the shared values, which mixes slowly. "
                "Fit the shared values by svi or em: Problem.infer then integrates each particle by itself.",
                stacklevel=3,
            )


def _informed(problem: PlainProblem, z: Sites, arrays: list[Array], join: Callable) -> ParamInfo:
    """Starting points with their energies and gradients, compiled at once rather than operation by operation.

    Raises:
        UsageError: if the density is not finite there.
    """
    model = handlers.seed(problem.model, jax.random.key(0))

    @jax.jit
    def look(z: Sites, arrays: list[Array]) -> tuple[Array, Sites]:
        energy = partial(potential_energy, model, (join(arrays),), {})
        return jax.lax.map(jax.value_and_grad(energy), z)

    energy, gradient = look(z, arrays)
    if not np.isfinite(np.asarray(energy)).all():
        raise UsageError("mcmc: the density is zero or not finite where the chains start; give start={name: value}.")
    return ParamInfo(z, energy, gradient)


def _stats(chains: Any) -> dict[str, Array]:
    """Statistics of the last transition, by ArviZ's names."""
    return {
        "diverging": chains.diverging,
        "acceptance_rate": chains.accept_prob,
        "n_steps": chains.num_steps,
        "energy": chains.energy,
        "lp": -chains.potential_energy,
        "step_size": chains.adapt_state.step_size,
    }


def _compile(problem: PlainProblem, kernel: Any, join: Callable) -> tuple[Callable, Callable]:
    """Compiled functions: a block of transitions, and positions (n, …) to what is kept of them."""
    advance = jax.jit(lambda state, count, arrays: _advance(kernel, state, count, join(arrays)))
    return advance, jax.jit(lambda x, arrays: jax.lax.map(lambda one: values(problem, one, join(arrays)), x))


def _advance(kernel: Any, state: tuple, count: Array, data: Any) -> tuple:
    """`count` transitions of all chains, each written to the block."""

    def body(number: Array, carry: tuple) -> tuple:
        chains, positions, stats = carry
        chains = kernel.sample(chains, (data,), {})

        def put(block: Array, value: Array) -> Array:
            return block.at[:, number].set(value)

        return chains, jax.tree.map(put, positions, chains.z), jax.tree.map(put, stats, _stats(chains))

    return jax.lax.fori_loop(0, count, body, state)
