"""Markov chain Monte Carlo: kernels of NumPyro and BlackJAX, whose transitions run in compiled blocks."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer import NUTS

from hetmodels.errors import UsageError
from hetmodels.plain import PlainProblem, Sites
from hetmodels.problem import ParticleProblem
from hetmodels.selection import PoseTable
from hetmodels.tree import pytree
from inference.kernels import Chains, CompositeChains, bound, log_density, on_data, own_sites, scattered
from inference.pose_table import at_candidates, candidates_report, first_candidates, searched
from inference.sites import compiled, local_sites, need_given, refuse, settings, split_arrays, start, values

_MANY = 20_000
_DRAWS, _NUMBERS = 100, 2**20  # draws, and unknown numbers in them, that are converted side by side
_TOLD = {"acceptance_rate": "acceptance", "n_steps": "gradients", "energy_error": "energy_error"}


@pytree
class MCMCState:
    """Where the chains stand.

    Attributes:
        chains: the kernel's state.
        positions: unconstrained sites of the last block, (chains, block, …).
        stats: statistics of its transitions, (chains, block).
        filled: transitions in the last block.
        done: transitions of each chain so far, warm-up included.
        poses: candidates of every particle's pose (`PoseTable`) where they are searched; else ().
    """

    chains: Any
    positions: Sites
    stats: dict[str, Array]
    filled: np.ndarray
    done: np.ndarray
    poses: Any = ()


@dataclasses.dataclass(frozen=True, repr=False)
class MCMC:
    """Chains on the joint density of all sites, all data at once; step size and mass matrix adapt during warm-up.

    Per-particle latents that the family's structure does not integrate are sampled jointly with the shared values.

    Attributes:
        draws: draws of each chain that are kept.
        warmup: transitions before, in which the kernel adapts.
        chains: number of chains, run side by side.
        kernel: an object of `inference.blackjax_kernels` (`NUTS()`, `MCLMC()`), `inference.gibbs.LinearGibbs()` for
            linear families, or what makes a NumPyro kernel of a model: `numpyro.infer.NUTS` or `HMC`, a
            `functools.partial` of them with settings, or a function that returns an `HMCGibbs` or `HMCECS`.
        block: transitions between two reports.
        starts: moves the points that the chains start from, `inference.kernels.Pathfinder()`; none leaves them where
            the start values or the kernel's own choice put them.
        search_every: blocks of warm-up between two searches of the poses, where they are unknown and the family is
            linear. The density then sums over the candidates of the last search (`Unknown.poses` per particle), and
            `LinearGibbs` draws from them. They stay after the warm-up, so that what is sampled is the posterior over
            these candidates, which leaves out the mass that the trace tells as `discarded`. None: poses are latents
            that the chains sample.
    """

    draws: int = 1000
    warmup: int = 1000
    chains: int = 4
    kernel: Any = NUTS
    block: int = 50
    starts: Any = None
    search_every: int | None = 1

    batch_size = 1
    whole = True
    shuffle = False

    def __post_init__(self) -> None:
        if min(self.draws, self.chains, self.block) < 1 or self.warmup < 0:
            raise ValueError(f"MCMC: draws, chains and block must be at least 1, warmup at least 0, got {self!r}.")
        if self.search_every is not None and self.search_every < 1:
            raise ValueError(f"MCMC: search_every must be at least 1, or none, got {self.search_every}.")

    __repr__ = settings

    @property
    def sums_poses(self) -> bool:
        """Whether poses that are searched are summed over, rather than sampled."""
        return self.search_every is not None

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """Nothing in the model itself; sites that only an optimiser can estimate are refused by `init`."""
        return None

    def passes(self, problem: PlainProblem) -> int:
        """Blocks of warm-up, then of draws."""
        chains = bound(self.kernel, problem, self.warmup)
        warm = int(self.warmup > 0) if chains.at_once else math.ceil(self.warmup / self.block)
        return warm + math.ceil(self.draws / self.block)

    def init(self, key: Array, problem: PlainProblem) -> MCMCState:
        """Start the chains at different points.

        Raises:
            UsageError: if `param` sites have no given value, sites are discrete, or the density is not finite at the
                start.
        """
        refuse(problem, "mcmc", drawn=own_sites(self.kernel, problem))
        need_given(problem, "mcmc")
        self._warn_of_many(problem)
        poses = first_candidates(jax.random.fold_in(key, 2), problem)
        data = at_candidates(poses, problem.whole())
        key, key_start = jax.random.split(key)
        keys = jax.random.split(key, self.chains)
        bound_chains, _, _ = self._compiled(problem, data)
        if isinstance(poses, PoseTable) and isinstance(bound_chains, CompositeChains):
            raise UsageError(
                "mcmc: kernels of several blocks do not search poses; use NUTS, MCLMC or LinearGibbs, or set "
                "search_every to none, which makes the poses latents."
            )
        chains = bound_chains.init(keys, self._starting(key_start, problem, data), data)
        room, stats, positions = (self.chains, self.block), bound_chains.stats(chains), bound_chains.positions(chains)
        return MCMCState(
            chains,
            {name: jnp.zeros((*room, *z.shape[1:]), z.dtype) for name, z in positions.items()},
            {name: jnp.zeros(room, value.dtype) for name, value in stats.items()},
            np.asarray(0),
            np.asarray(0),
            poses,
        )

    def _starting(self, key: Array, problem: PlainProblem, data: Any) -> Sites | None:
        """Unconstrained sites per chain; None where the kernel is to choose."""
        keys = jax.random.split(key, self.chains)
        if isinstance(problem, ParticleProblem) or problem.started:
            x = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[start(problem, k) for k in keys])
        elif self.starts is None and not (hasattr(self.kernel, "bind") or hasattr(self.kernel, "bind_problem")):
            return None
        else:
            x = scattered(problem, keys)
        if self.starts is None:
            return x
        density, move = log_density(problem), self.starts.move
        keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)

        def moved(keys: Array, x: Sites, data: Any) -> Sites:
            return jax.lax.map(lambda at: move(at[0], lambda x: density(x, data), at[1]), (keys, x))

        return on_data(moved, keys, x, data=data)

    def step(self, key: Array, problem: PlainProblem, state: MCMCState, batch: Any) -> tuple[MCMCState, dict[str, Any]]:
        """One block of transitions; the chains carry their own random keys."""
        batch = at_candidates(state.poses, batch)
        done, arrays = int(state.done), split_arrays(batch)[0]
        warm, (chains, advance, _) = done < self.warmup, self._compiled(problem, batch)
        if warm and chains.at_once:
            inner, positions, stats = advance(True)(state.chains, arrays), state.positions, state.stats
            count, block = self.warmup, {k: np.asarray(v)[:, None] for k, v in chains.stats(inner).items()}
        else:
            count = min(self.block, (self.warmup if warm else self.warmup + self.draws) - done)
            inner, positions, stats = advance(False)((state.chains, state.positions, state.stats), count, arrays)
            block = {name: np.asarray(value)[:, :count] for name, value in stats.items()}
        info = {"objective": float(block["lp"].mean()) / problem.size, "stage": "warm-up" if warm else "sampling"}
        info |= {told: float(block[name].mean()) for name, told in _TOLD.items() if name in block}
        info |= {"step_size": float(block["step_size"][:, -1].mean())} if "step_size" in block else {}
        info |= {"diverging": int(block["diverging"].sum())} if "diverging" in block else {}
        moved = MCMCState(inner, positions, stats, np.asarray(count), np.asarray(done + count), state.poses)
        if not warm or not isinstance(state.poses, PoseTable):
            return moved, info
        return self._searched(key, problem, moved), info | candidates_report(problem, moved.poses)

    def _searched(self, key: Array, problem: Any, state: MCMCState) -> MCMCState:
        """With the candidates of a new search at the mean of the last block, where one is due."""
        assert self.search_every is not None
        last = int(state.done) >= self.warmup
        if not last and math.ceil(int(state.done) / self.block) % self.search_every:
            return state
        chains, _, _ = self._compiled(problem, None)
        mean = {name: z[:, : int(state.filled)].mean((0, 1)) for name, z in state.positions.items()}
        if chains.at_once:  # the block is of draws alone
            mean = {name: z.mean(0) for name, z in chains.positions(state.chains).items()}
        poses = searched(key, problem, state.poses, values(problem, mean, problem.data))
        renewed = on_data(lambda inner, data: chains.renewed(inner, data), state.chains,
                          data=at_candidates(poses, problem.whole()))  # fmt: skip
        return dataclasses.replace(state, chains=renewed, poses=poses)

    def kept(self, problem: PlainProblem, state: MCMCState) -> tuple[Sites, dict[str, Any]]:
        """The draws of the last block, none during warm-up."""
        if int(state.done) <= self.warmup:
            return {}, {}
        count = int(state.filled)
        flat = {name: z[:, :count].reshape(-1, *z.shape[2:]) for name, z in state.positions.items()}
        data = at_candidates(state.poses, problem.whole())
        arrays, _ = split_arrays(data)
        _, _, convert = self._compiled(problem, data)
        draws = {name: v.reshape(self.chains, count, *v.shape[1:]) for name, v in convert(flat, arrays).items()}
        return draws, {name: value[:, :count] for name, value in state.stats.items()}

    def draw(self, key: Array, problem: PlainProblem, state: MCMCState) -> Sites:
        """Where the first chain stands."""
        chains, _, _ = self._compiled(problem, None)
        return values(problem, {name: z[0] for name, z in chains.positions(state.chains).items()}, problem.data)

    def _compiled(self, problem: PlainProblem, data: Any) -> tuple[Chains, Callable, Callable]:
        """Compiled on first use, for data of the form given."""
        return compiled(problem, self, lambda: _compile(problem, bound(self.kernel, problem, self.warmup), data))

    def _warn_of_many(self, problem: PlainProblem) -> None:
        local = local_sites(problem)
        count = problem.size * sum(int(np.prod(problem.sites[n]["value"].shape[1:])) for n in local)
        if count > _MANY:
            warnings.warn(
                f"mcmc: {count} latents of particles are sampled jointly with the shared values, which mixes slowly. "
                "Fit the shared values by svi or em: Problem.infer then integrates each particle by itself.",
                stacklevel=3,
            )


def _compile(problem: PlainProblem, chains: Chains, data: Any) -> tuple[Chains, Callable, Callable]:
    """The chains, their compiled steps (warm-up at once, or a block), and positions (n, …) to what is kept of them."""
    _, join = split_arrays(data)
    block = jax.jit(lambda state, count, arrays: _advance(chains, state, count, join(arrays)))
    warm = jax.jit(lambda state, arrays: chains.warm(state, join(arrays))) if chains.at_once else None

    def convert(x: Sites, arrays: list[Array]) -> Sites:
        numbers = sum(leaf[0].size for leaf in jax.tree.leaves(x))
        rows = max(1, min(_DRAWS, _NUMBERS // max(numbers, 1)))
        return jax.lax.map(lambda one: values(problem, one, join(arrays)), x, batch_size=rows)

    return chains, lambda at_once: warm if at_once else block, jax.jit(convert)


def _advance(chains: Chains, state: tuple, count: Array, data: Any) -> tuple:
    """`count` transitions of all chains, each written to the block."""

    def body(number: Array, carry: tuple) -> tuple:
        inner, positions, stats = carry
        inner = chains.sample(inner, data)

        def put(block: Array, value: Array) -> Array:
            return block.at[:, number].set(value)

        positions = jax.tree.map(put, positions, chains.positions(inner))
        return inner, positions, jax.tree.map(put, stats, chains.stats(inner))

    return jax.lax.fori_loop(0, count, body, state)
