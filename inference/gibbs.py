"""Gibbs sampling of linear families between exact conditional blocks: latents and poses given maps, maps given latents.

Given the maps, each particle's node and pose are drawn jointly from the grid, or its Gaussian latent from its normal.
Given these, the maps are normal with the precision of a least-squares problem, and perturb-and-solve draws them: noise
is added to data and prior, and the perturbed problem is solved (Papandreou and Yuille 2010, NIPS; Orieux, Feron and
Giovannelli 2012, IEEE Signal Process. Lett. 19). Frequencies of nodes follow their Dirichlet law.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.flatten_util import ravel_pytree

from hetmodels.data.batch import Batch
from hetmodels.errors import UsageError
from hetmodels.families.protocol import Gaussian, Gridded, Linear, Moving, mixture_of, shown
from hetmodels.local import (
    centred_images,
    component_lattice,
    component_slices,
    design_moments,
    mixing_pairs,
    shell_statistics,
)
from hetmodels.observation import marginal_ratio
from hetmodels.plain import Sites
from hetmodels.problem import ParticleProblem
from hetmodels.tree import pytree
from inference.kernels import log_density, on_data

_ROWS = 250  # images in memory at a time
_LENGTHS = (0.3, 0.1, 0.03, 0.01)  # of steps in the logarithm of a scale


@pytree
class GibbsState:
    """Where the chains stand.

    Attributes:
        keys: random keys, (chains,).
        x: unconstrained sites, (chains, …).
        residual: relative residual of the last solve, (chains,).
        lp: log density with the latents integrated, (chains,).
    """

    keys: Array
    x: Sites
    residual: Array
    lp: Array


@dataclasses.dataclass(frozen=True)
class LinearGibbs:
    """A kernel of `MCMC` for linear families: `MCMC(kernel=LinearGibbs(), warmup=50)`. It has nothing to tune.

    Attributes:
        solver_steps: conjugate-gradient steps of a draw of the maps at most.
        tolerance: relative residual at which they end. Draws are exact as far as this is small.

    Raises:
        ValueError: if a setting is out of range.
    """

    solver_steps: int = 200
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if self.solver_steps < 1 or not 0 < self.tolerance < 1:
            raise ValueError(f"LinearGibbs: solver_steps must be at least 1 and tolerance in (0, 1), got {self!r}.")

    def bind_problem(self, problem: ParticleProblem, warmup: int) -> "GibbsChains":
        """The kernel on a problem.

        Raises:
            UsageError: if the problem has blocks whose conditional law is not known here.
        """
        family = problem.family
        if not isinstance(problem, ParticleProblem) or not isinstance(family, Linear) or isinstance(family, Moving):
            raise UsageError("LinearGibbs draws maps of a linear family that does not move; use NUTS for other models.")
        obs = problem.observation
        if obs.outliers is not None or (isinstance(family, Gaussian) and obs.contrast is not None):
            raise UsageError(
                "LinearGibbs draws neither junk nor a Gaussian latent's contrast; leave these out, or NUTS."
            )
        if obs.pose.prior() and not problem.summed:
            raise UsageError(
                "LinearGibbs draws poses from the candidates of a search: set MCMC(search_every=1), on the command "
                "line --set engine.search_every=1."
            )
        if mixture_of(family, problem.starting(jax.random.key(0))) is not None:
            raise UsageError(
                "LinearGibbs draws no mixture of Gaussians: its weights move the means. Set family.mixture=1, or NUTS."
            )
        laws = {name: site["fn"] for name, site in problem.sites.items() if site["type"] == "sample"}
        white = tuple(name for name, law in laws.items() if _is_white(law))
        odd = [n for n, law in laws.items() if n not in white and not isinstance(law, dist.Dirichlet)]
        if odd or not white:
            raise UsageError(f"LinearGibbs knows no conditional law of {', '.join(odd) or 'any map'}; use NUTS.")
        return GibbsChains(self, problem, white, tuple(n for n in laws if n not in white))


def _is_white(law: Any) -> bool:
    """Whether a law is standard normal."""
    while not isinstance(law, dist.Normal):
        if not hasattr(law, "base_dist"):
            return False
        law = law.base_dist
    return bool(jnp.all(law.loc == 0) & jnp.all(law.scale == 1))


class GibbsChains:
    """See `LinearGibbs`."""

    at_once = False

    def __init__(self, settings: LinearGibbs, problem: Any, white: tuple[str, ...], shares: tuple[str, ...]) -> None:
        self.settings, self.problem, self.white, self.shares = settings, problem, white, shares
        self.density = log_density(problem)

    def init(self, keys: Array, x: Sites, data: Any) -> GibbsState:
        """See `Chains.init`."""
        lp = on_data(lambda x, data: jax.lax.map(lambda one: self.density(one, data), x), x, data=data)
        return GibbsState(keys, x, jnp.zeros(len(keys)), lp)

    def warm(self, state: GibbsState, data: Any) -> GibbsState:
        """Nothing to adapt."""
        return state

    def renewed(self, state: GibbsState, data: Any) -> GibbsState:
        """Nothing is kept but the last density, which the next sweep evaluates anew."""
        return state

    def positions(self, state: GibbsState) -> Sites:
        """See `Chains.positions`."""
        return state.x

    def stats(self, state: GibbsState) -> dict[str, Array]:
        """See `Chains.stats`."""
        return {"lp": state.lp, "residual": state.residual, "diverging": state.residual > 10 * self.settings.tolerance}

    def sample(self, state: GibbsState, data: Batch) -> GibbsState:
        """One sweep over all blocks of every chain."""

        def one(at: tuple[Array, Sites]) -> tuple[Array, Sites, Array, Array]:
            key, *keys = jax.random.split(at[0], 5)
            x, residual = self._sweep(tuple(keys), at[1], data)
            return key, x, residual, self.density(x, data)

        return GibbsState(*jax.lax.map(one, (state.keys, state.x)))

    def _sweep(self, keys: tuple[Array, ...], x: Sites, data: Batch) -> tuple[Sites, Array]:
        problem, family = self.problem, self.problem.family
        shared = problem.shared(x)
        weights, nodes, batch = draw_latents(keys[0], family, shared, data, problem.observation)
        others = {name: value for name, value in x.items() if name not in self.white}
        flat, unravel = ravel_pytree({name: x[name] for name in self.white})

        def maps(u: Array) -> Array:
            return shown(family, problem.shared(others | unravel(u)))

        variance = problem.observation.pixel_variance(shared["noise"], batch.group)
        images = partial(modelled, component_lattice(family), batch, problem.observation, weights)
        target = centred_images(batch, problem.observation), variance, batch.weight
        found, residual = perturb_and_solve(keys[1], lambda u: images(maps(u)), flat, target, self.settings)
        if problem.observation.contrast is not None:
            design = _design(family, shared)[0][nodes]
            scale = jnp.sum(weights * design, axis=1) / jnp.sum(design**2, axis=1)
            found = found * exchanged(keys[3], found, scale, batch.weight, problem.observation.contrast.sd)
        x = others | unravel(found)
        for name in self.shares:
            law = problem.sites[name]["fn"]
            counts = jnp.bincount(nodes, batch.weight, length=law.event_shape[0])
            drawn = dist.Dirichlet(law.concentration + counts).sample(keys[2])
            x = x | problem.unconstrained({name: jnp.clip(drawn, 1e-7, 1.0)})
        return x, residual


def draw_latents(key: Array, family: Any, shared: Sites, batch: Batch, observation: Any) -> tuple[Array, Array, Batch]:
    """Exact draws of each particle's latents: weights a b(z), node numbers, and the batch at the poses drawn.

    Where the batch brings several poses of an image (`Batch.poses`), node and pose are drawn jointly.
    """
    lattice, noise = component_lattice(family), shared["noise"][batch.group]
    table, pairs = lattice.table(shown(family, shared)), mixing_pairs(family, shared)

    def statistics(placed: Batch) -> tuple[Array, Array]:
        slices, _ = component_slices(lattice, table, placed, observation)
        images = centred_images(placed, observation)
        return shell_statistics(images, slices, placed.ctf, observation.disc, pairs).weighted(noise)

    def at(pose: Any) -> tuple[Array, Array, Array]:
        h, gram = statistics(dataclasses.replace(batch, rotation=pose.rotation, shift=pose.shift, poses=None))
        if isinstance(family, Gaussian):
            return h, gram, design_moments(family, shared, h, gram, None).log_ratio[:, None]
        nodes, log_weights = _design(family, shared)
        return h, gram, _node_moments(nodes, h, gram, observation)[0] + log_weights

    key_pick, key_z = jax.random.split(key)
    if batch.poses is None:
        h, gram, joint = at(batch)
        node = jax.random.categorical(key_pick, joint)
    else:
        each = jax.lax.map(at, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batch.poses))
        logits = jnp.moveaxis(each[2], 0, 1) + batch.poses.log_prior[..., None]
        picked = jax.random.categorical(key_pick, logits.reshape(len(logits), -1))
        pose, node, rows = picked // logits.shape[2], picked % logits.shape[2], jnp.arange(len(logits))
        h, gram = each[0][pose, rows], each[1][pose, rows]
        rotation, shift = batch.poses.rotation[rows, pose], batch.poses.shift[rows, pose]
        batch = dataclasses.replace(batch, rotation=rotation, shift=shift, poses=None)
    if isinstance(family, Gaussian):
        return _draw_gaussian(key_z, family, shared, h, gram), node, batch
    nodes, _ = _design(family, shared)
    _, mean, second = _node_moments(nodes, h, gram, observation)
    first = jnp.take_along_axis(mean, node[:, None], 1)[:, 0]
    spread = jnp.take_along_axis(second, node[:, None], 1)[:, 0] - first**2
    scale = first + jnp.sqrt(jnp.maximum(spread, 0)) * jax.random.normal(key_z, first.shape)
    return scale[:, None] * nodes[node], node, batch


def _design(family: Any, shared: Sites) -> tuple[Array, Array]:
    """Weights b at each node, and the nodes' log weights."""
    if not isinstance(family, Gridded):
        return family.design(None)[None], jnp.zeros(1)
    nodes, log_weights = family.grids(shared)
    return jax.vmap(family.design)(nodes), log_weights  # type: ignore[attr-defined]


def _node_moments(design: Array, h: Array, gram: Array, observation: Any) -> tuple[Array, Array, Array]:
    """Log ratio, E[a] and E[a^2] of each image at each node."""
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    quadratic = exact("nl,blm,nm->bn", design, gram, design)
    return marginal_ratio(exact("bl,nl->bn", h, design), quadratic, observation.contrast)


def _draw_gaussian(key: Array, family: Any, shared: Sites, h: Array, gram: Array) -> Array:
    """(1, z) with z from its normal posterior, (rows, 1 + dims)."""
    found = design_moments(family, shared, h, gram, None)
    root = jnp.linalg.cholesky(found.covariance)
    z = found.mean + jnp.einsum("bij,bj->bi", root, jax.random.normal(key, found.mean.shape))
    return jnp.concatenate([jnp.ones_like(z[:, :1]), z], axis=1)


def modelled(lattice: Any, batch: Batch, observation: Any, weights: Array, maps: Array) -> Array:
    """Centred model images sum_l w_l C P X_l, a few at a time, complex (rows, pixels)."""
    table = lattice.table(maps)

    @jax.checkpoint
    def one(at: tuple[Batch, Array]) -> Array:
        row, own = jax.tree.map(lambda leaf: leaf[None], at)
        slices, _ = component_slices(lattice, table, row, observation)
        return (row.ctf * jnp.einsum("bml,bl->bm", slices, own.astype(slices.dtype)))[0]

    return jax.lax.map(one, (dataclasses.replace(batch, poses=None), weights), batch_size=_ROWS)


def exchanged(key: Array, u: Array, scale: Array, weight: Array, sd: float) -> Array:
    """The factor of a move (u, a) -> (c u, a / c) of map and contrasts that leaves every image as it is.

    Where images are clear, a fixes the size of u and u that of a, so that their common scale would creep. The factor is
    moved within its law on this orbit, N(c u; 0, 1) prod_i N(a_i / c; 1, sd²) c^(dim u - n) dc / c, by Metropolis steps
    of several lengths (Liu and Sabatti 2000, Biometrika 87).

    Args:
        key: random key.
        u: standard normal coordinates of the maps.
        scale: contrast a of each image.
        weight: 0 for rows that do not count.
        sd: spread of the contrast.
    """
    square, spare = jnp.sum(u**2), u.size - jnp.sum(weight)
    first, second, count = jnp.sum(weight * scale), jnp.sum(weight * scale**2), jnp.sum(weight)

    def log_law(t: Array) -> Array:
        contrasts = second * jnp.exp(-2 * t) - 2 * first * jnp.exp(-t) + count
        return -0.5 * square * jnp.exp(2 * t) - 0.5 * contrasts / sd**2 + spare * t

    def step(t: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        length, key = at
        key_move, key_take = jax.random.split(key)
        there = t + length * jax.random.normal(key_move)
        taken = jnp.log(jax.random.uniform(key_take)) < log_law(there) - log_law(t)
        return jnp.where(taken, there, t), None

    lengths = jnp.tile(jnp.array(_LENGTHS, u.dtype), 4)
    return jnp.exp(jax.lax.scan(step, jnp.zeros((), u.dtype), (lengths, jax.random.split(key, len(lengths))))[0])


def perturb_and_solve(
    key: Array,
    images: Callable[[Array], Array],
    like: Array,
    data: tuple[Array, Array, Array],
    settings: LinearGibbs,
) -> tuple[Array, Array]:
    """A draw of u ~ N(0, 1) given y = images(u) + noise, `images` linear, and the relative residual of its solve.

    Args:
        key: random key.
        images: u to complex images (rows, pixels).
        like: an array of the shape of u.
        data: images y, variance of each complex pixel (rows, pixels), and weights of the rows.
        settings: of the solver.
    """
    y, variance, weight = data
    scale = 2 * weight[:, None] / variance
    key_prior, *key_noise = jax.random.split(key, 3)
    real, imaginary = (jax.random.normal(k, variance.shape) for k in key_noise)
    perturbed = y + jnp.sqrt(variance / 2) * (real + 1j * imaginary)
    zero = jnp.zeros_like(like)

    def product(u: Array) -> Array:
        model = images(u)
        return jnp.sum(scale * (jnp.conj(perturbed) * model).real)

    def half_square(u: Array) -> Array:
        model = images(u)
        return 0.5 * jnp.sum(scale * (model.real**2 + model.imag**2))

    def normal(u: Array) -> Array:
        return u + jax.grad(half_square)(u)

    target = jax.grad(product)(zero) + jax.random.normal(key_prior, like.shape)
    found, _ = jax.scipy.sparse.linalg.cg(normal, target, zero, tol=settings.tolerance, maxiter=settings.solver_steps)
    return found, jnp.linalg.norm(normal(found) - target) / jnp.linalg.norm(target)
