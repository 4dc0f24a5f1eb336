"""The mean map from first moments: one pass builds the normal equations of least squares, then they are solved.

With y = C P F X + noise the estimate solves  (F* P* D P F + T) X = F* P* C/sigma^2 y,  D = C^2/sigma^2 and T = 1/tau^2,
known poses, uncorrelated contrast of mean 1. P* D P couples a row of the padded grid only with its 26 neighbours
(trilinear slices), so it is kept as a sparse symmetric matrix and the images are read once. A family with a Gaussian
latent takes its components from the second moments about that mean, see `inference.covariance`.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.sparse.linalg import cg

from hetmodels.data.batch import Batch
from hetmodels.errors import UsageError
from hetmodels.families.protocol import Gaussian, need_frame
from hetmodels.imaging import accumulate
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.slices import Cells, Lattice
from hetmodels.local import centred_images, component_lattice
from hetmodels.observation import Observation
from hetmodels.tree import pytree
from inference.sites import refuse
from inference.subspace_start import at_all_resolutions, spectra_of
from inference.volume_step import data_precision


@pytree
class MomentsState:
    """Sums of the pass, then the solution.

    Attributes:
        target: back-projected images P* C/sigma^2 y, as `accumulate` lays them out.
        normal: the stencil of P* D P likewise.
        zero: sum of log p(y | noise) - log p(y | noise of the reference spectrum).
        noise: variance relative to the reference spectrum, (groups, shells).
        map: the estimate, (N, N, N).
        tau2: prior variance per shell, (shells,).
        components: of a Gaussian latent, each times the standard deviation along it, (dims, N, N, N); else empty.
    """

    target: Any
    normal: Any
    zero: np.ndarray
    noise: Array
    map: Array
    tau2: Array
    components: Array


@dataclasses.dataclass(frozen=True)
class Moments:
    """Least squares of the mean map and of the covariance about it, with the noise spectrum as started.

    Attributes:
        batch_size: particles per step.
        learn_spectrum: re-estimate the map's prior spectrum by empirical Bayes with the posterior variance, unless
            it is given; otherwise it stays as started.
        tolerance: relative residual at which the linear solver stops.
        iterations: steps of the linear solver at most.
    """

    batch_size: int = 500
    learn_spectrum: bool = True
    tolerance: float = 1e-6
    iterations: int = 500

    whole = False
    shuffle = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.iterations < 1 or not self.tolerance > 0:
            raise ValueError(
                f"Moments: batch_size and iterations must be at least 1, tolerance positive, got {self!r}."
            )

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """Moments needs a linear family of one map, with or without a Gaussian latent, and trilinear slices."""
        name = getattr(model, "__name__", type(model).__name__)
        missing = [n for n in ("components", "spectra", "design", "updated") if not hasattr(model, n)]
        if missing:
            return f"moments needs a linear family; {name} has no {', '.join(missing)} (protocol Linear)."
        if hasattr(model, "grids"):
            return f"moments tells no discrete states apart, and the latents of {name} are (Gridded)."
        if getattr(model, "mixture", 1) != 1:
            return f"moments knows second moments only, and those of one Gaussian; {name} has {model.mixture}, use em."
        if getattr(model, "order", 1) != 1:
            return f"moments needs trilinear slices; set family.order=1, {name} has {model.order}."
        return None

    def passes(self, problem: Any) -> int:
        """One."""
        return 1

    def init(self, key: Array, problem: Any) -> MomentsState:
        """Empty sums.

        Raises:
            UsageError: with unknown poses, a junk component or half sets kept apart.
        """
        refuse(problem, "moments", locals_too=True)
        if problem.observation.outliers is not None:
            raise UsageError(
                "moments averages over all images and has no junk component; leave outliers out or use em."
            )
        lattice, shared = component_lattice(problem.family), problem.starting(key)
        components = problem.family.components(shared)
        gaussian = isinstance(problem.family, Gaussian)
        if len(components) != 1 and not gaussian:
            raise UsageError(f"moments estimates one map; {type(problem.family).__name__} has {len(components)}.")
        return MomentsState(
            accumulate.empty(lattice, 1, 2),
            accumulate.empty(_nearest(lattice), 1, len(_stencil(lattice)[0])),
            np.zeros(()),
            shared["noise"],
            components[0],
            problem.family.spectra(shared)[0],
            components[1:] if gaussian else components[:0],
        )

    def step(self, key: Array, problem: Any, state: MomentsState, batch: Batch) -> tuple[MomentsState, dict[str, Any]]:
        """Add a batch to both sides of the normal equations."""
        lattice = component_lattice(problem.family)
        cells, values, zero = _terms(lattice, problem.observation, batch, state.noise)
        target = accumulate.add(lattice, state.target, cells, values[..., :2])
        normal = state.normal
        for tap, offset in enumerate(lattice.offsets):
            products = _products(lattice, cells, values[..., 2], tap)
            at = dataclasses.replace(cells, base=cells.base + int(offset))
            normal = accumulate.add(_nearest(lattice), normal, at, products)
        return dataclasses.replace(state, target=target, normal=normal, zero=state.zero + np.float64(zero)), {}

    def sweep(self, key: Array, problem: Any, state: MomentsState) -> tuple[MomentsState, dict[str, Any]]:
        """Solve, and with an unknown spectrum alternate with its estimate until that settles."""
        lattice = component_lattice(problem.family)
        target = accumulate.table(state.target, 2)
        stencil = accumulate.table(state.normal, len(_stencil(lattice)[0]))
        learn = self.learn_spectrum and not any(name.endswith("tau2") for name in problem.given)
        solve = partial(_solve, lattice, self.iterations, self.tolerance, stencil, target)
        x, tau2 = solve(state.map, state.tau2), state.tau2
        for _ in range(30 if learn else 0):
            fresh = _spectrum(lattice, stencil, x, tau2)
            change = float(jnp.max(jnp.abs(jnp.log(fresh[1:] / tau2[1:]))))
            x, tau2 = solve(x, fresh), fresh
            if change < 1e-3:
                break
        components = state.components
        if isinstance(problem.family, Gaussian):
            components = at_all_resolutions(problem, x, state.noise, len(components), self.batch_size)
        state = dataclasses.replace(state, map=x, tau2=tau2, components=components)
        fit = float(state.zero) + float(_explained(lattice, stencil, target, x))
        prior = float(Ball(need_frame(problem.family).size).log_prior(x, tau2))
        return state, {"objective": (fit + prior) / problem.size}

    def draw(self, key: Array, problem: Any, state: MomentsState) -> dict[str, Array]:
        """The estimate as shared values."""
        shared = problem.starting(key)
        del shared["noise"]
        components = jnp.concatenate([state.map[None], state.components])
        spectra = jnp.concatenate([state.tau2[None], spectra_of(state.components, problem.family.spectra(shared)[1:])])
        return problem.family.updated(shared, components, spectra, jnp.ones(1)) | {"noise": state.noise}


def _nearest(lattice: Lattice) -> Lattice:
    """The same table with one tap per pixel."""
    return dataclasses.replace(lattice, order=0)


@cache
def _stencil(lattice: Lattice) -> tuple[np.ndarray, np.ndarray]:
    """Distances in rows from a row to itself and to the half of its neighbours after it, and the stencil's columns.

    Returns:
        Distances (14,), and for each tap i (8,) and tap j (8,) the column of the pair, -1 where row j comes before i.
    """
    apart = lattice.offsets[None, :].astype(np.int64) - lattice.offsets[:, None]
    distances = np.unique(apart[apart >= 0])
    return distances, np.where(apart >= 0, np.searchsorted(distances, apart), -1)


@partial(jax.jit, static_argnums=(0, 1))
def _terms(lattice: Lattice, obs: Observation, batch: Batch, noise: Array) -> tuple[Cells, Array, Array]:
    """Where the pixels fall; columns of the right side and the weight 2 C^2/sigma^2; terms of the objective."""
    variance = obs.pixel_variance(noise, batch.group)
    cells = lattice.cells(batch.rotation, obs.disc.grid(obs.spacing).points, batch.stretch)
    scale = 2 * batch.ctf / variance * batch.weight[:, None]
    y = scale * centred_images(batch, obs)
    values = jnp.stack([y.real, y.imag * cells.sign, scale * batch.ctf], axis=-1)
    return cells, values, obs.zero_ratio(batch.images, variance) @ batch.weight


@partial(jax.jit, static_argnums=(0, 3))
def _products(lattice: Lattice, cells: Cells, weight: Array, tap: int) -> Array:
    """Entries of P* D P in the row of one tap: (slices, pixels, columns of the stencil)."""
    distances, column = _stencil(lattice)
    taps = lattice.tap_weights(cells)
    into = np.zeros((len(column), len(distances)), np.float32)
    others = np.flatnonzero(column[tap] >= 0)
    into[others, column[tap][others]] = 1
    return (weight * taps[..., tap])[..., None] * (taps @ into)


def _apply(lattice: Lattice, stencil: Array, table: Array) -> Array:
    """P* D P of a table (rows, columns)."""
    distances, _ = _stencil(lattice)
    total = stencil[:, :1] * table
    for column, distance in enumerate(distances[1:], start=1):
        entry = stencil[:, column : column + 1]
        total = total + entry * jnp.roll(table, -int(distance), axis=0)
        total = total + jnp.roll(entry * table, int(distance), axis=0)
    return total


def _precision(lattice: Lattice, stencil: Array) -> Array:
    """What the data say of each Fourier voxel, from the row sums of P* D P."""
    return data_precision(lattice, _apply(lattice, stencil, jnp.ones((len(stencil), 1)))[:, 0])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _solve(
    lattice: Lattice, steps: int, tolerance: float, stencil: Array, target: Array, start: Array, tau2: Array
) -> Array:
    """The map that solves the normal equations."""
    ball = Ball(lattice.size)
    prior = 1 / jnp.maximum(tau2, 1e-30)
    flat = jnp.ones(ball.shells)

    def operator(x: Array) -> Array:
        data = lattice.adjoint(_apply(lattice, stencil, lattice.table(x[None])))[0]
        return ball.filter(data, flat) + lattice.size * ball.filter(x, prior)

    inverse = ball.mask / (_precision(lattice, stencil) + prior[ball.shell]) / lattice.size
    right = ball.filter(lattice.adjoint(target)[0], flat)
    first = ball.filter(start, flat)
    return cg(operator, right, first, tol=tolerance, maxiter=steps, M=lambda x: ball.map(ball.transform(x) * inverse))[
        0
    ]


@partial(jax.jit, static_argnums=0)
def _spectrum(lattice: Lattice, stencil: Array, x: Array, tau2: Array) -> Array:
    """Mean of |V^|^2 plus the posterior variance, per shell."""
    ball = Ball(lattice.size)
    variance = 1 / (_precision(lattice, stencil) + 1 / jnp.maximum(tau2, 1e-30)[ball.shell])
    mean = ball.shell_sum(jnp.abs(ball.transform(x)) ** 2 + variance) / np.maximum(ball.degrees, 1)
    return jnp.maximum(mean.at[0].set(mean[1]), 1e-12)


@partial(jax.jit, static_argnums=0)
def _explained(lattice: Lattice, stencil: Array, target: Array, x: Array) -> Array:
    """Log likelihood of all images relative to no map."""
    table = lattice.table(x[None])
    return jnp.sum(target * table) - 0.5 * jnp.sum(table * _apply(lattice, stencil, table))
