"""3-D variability analysis (3DVA): principal components of maps without a prior, held together by filters.

Punjani and Fleet (2021, J. Struct. Biol. 213) alternate least squares for each particle's latents, least squares for
the components voxel by voxel, and filters. Against EM on the same family nothing is integrated: a particle's latents
have no prior and count as known (their posterior covariance is left out), the mean map and the noise stay what
they are, and what keeps noise out of the components is a band, a mask and a small ridge.

Estimated latents vary by their own error too. The eigenvalues are therefore given twice: of the estimates, as the
method has them, and corrected, lambda = Var(z^) - mean(G^-1), G^-1 being the error of the estimate in each image.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.errors import UsageError
from hetmodels.families.protocol import Masked, need_frame
from hetmodels.imaging import accumulate
from hetmodels.imaging.ball import Ball
from hetmodels.local import Pairs, component_lattice, shell_statistics
from hetmodels.observation import Contrast
from hetmodels.tree import pytree
from inference.em import EM
from inference.expectation import Mode, contributions, look
from inference.sites import refuse
from inference.subspace_start import moment_start, spectra_of
from inference.volume_step import data_precision, volume_step

_RIDGE = 1e-6  # of the mean diagonal of G, so that an image which shows a component not at all can be solved
_LOW_ORDER, _HIGH_ORDER = 1.5, 8  # of the Butterworth filters
_LEAST = 1e-6  # of the largest eigenvalue: components that vary no more than by error get this


@pytree
class Spread:
    """Second moments of the least-squares estimates b^ = a (1, z), sums over particles in float64.

    Attributes:
        found: sum of b^ b^^T, (1 + dims, 1 + dims).
        error: sum of the covariances of b^ given the truth, likewise.
        log_ratio: sum of log p(y | a^, z^) - log p(y | noise only).
        particles: their number.
    """

    found: Any
    error: Any
    log_ratio: Any
    particles: Any

    def covariance(self, corrected: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mean (dims,) and covariance (dims, dims) of z, the errors taken out or not; contrast taken as independent."""
        second = self.found - self.error if corrected else self.found
        second = second / second[0, 0]
        return second[0, 1:], second[1:, 1:] - np.outer(second[0, 1:], second[0, 1:])


@pytree
class VariabilityState:
    """Where the algorithm stands.

    Attributes:
        maps: the mean map, and components that are orthonormal behind the mask, (1 + dims, N, N, N).
        table: their transform, (rows, 2 components).
        noise: variance relative to the reference spectrum, (groups, shells).
        total: back-projection sums of the pass.
        spread: of the latents' estimates in this pass.
        measured: the maps of the last finished pass.
        known: `spread` of that pass.
        angle: the largest angle by which the components turned in it [rad].
        passes: finished passes.
    """

    maps: Array
    table: Array
    noise: Array
    total: Any
    spread: Spread
    measured: Array
    known: Spread
    angle: np.ndarray
    passes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Variability:
    """3-D variability analysis (Punjani and Fleet 2021, J. Struct. Biol. 213), a rival to `em` on the same family.

    The result is a `Subspace` whose latents have variance 1: components times the root of their corrected
    eigenvalues. So it is inferred with and compared as any other. A prior of the contrast stands for a free scale of
    each image here; without one the components are kept orthogonal to the mean map.

    Attributes:
        iterations: passes over the data at most.
        tolerance: stop when no component turns by more than this in a pass [rad].
        batch_size: particles per step.
        solver_steps: conjugate-gradient steps of the components' least squares in each pass.
        low_pass: resolution at which components are cut off [Å].
        high_pass: resolution below which components are taken out [Å]: motion of micelles, gradients of ice; not if
            None.
        stabiliser: ridge of the components' least squares, as a part of the data's mean weight.
    """

    iterations: int = 20
    tolerance: float = 1e-2
    batch_size: int = 500
    solver_steps: int = 4
    low_pass: float = 8.0
    high_pass: float | None = None
    stabiliser: float = 0.01

    whole = False
    shuffle = False

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch_size, self.solver_steps) < 1:
            raise ValueError(f"Variability: iterations, batch_size and solver_steps must be at least 1, got {self!r}.")
        if not (self.low_pass > 0 and self.stabiliser > 0 and (self.high_pass is None or self.high_pass > 0)):
            raise ValueError(f"Variability: low_pass, high_pass and stabiliser must be positive, got {self!r}.")

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """Variability needs a linear family with one Gaussian latent."""
        name = getattr(model, "__name__", type(model).__name__)
        missing = [
            n for n in ("components", "spectra", "design", "updated", "latent_covariance") if not hasattr(model, n)
        ]
        if missing:
            return f"variability needs a linear family with a Gaussian latent; {name} has no {', '.join(missing)}."
        if getattr(model, "mixture", 1) != 1:
            return f"variability has no prior of the latents, and {name} has {model.mixture} Gaussians; use em."
        return None

    def passes(self, problem: Any) -> int:
        """Iterations, and one more that measures the last components."""
        return self.iterations + 1

    def init(self, key: Array, problem: Any) -> VariabilityState:
        """The mean map and noise of a few passes of EM, and the components of the moments' covariance.

        Raises:
            UsageError: with unknown poses or a junk component.
        """
        if problem.observation.outliers is not None:
            raise UsageError("variability has no junk component; leave outliers out or use em.")
        refuse(problem, "variability", locals_too=True)
        family, shared = problem.family, problem.starting(key)
        if not (problem.started and bool(jnp.any(family.components(shared)[1:]))):
            shared = moment_start(key, EM(batch_size=self.batch_size), problem)
        maps = self._orthonormal(problem, family.components(shared))
        return self._began(problem, maps, shared["noise"], {"measured": maps, "known": _nothing(len(maps))})

    def _began(self, problem: Any, maps: Array, noise: Array, rest: dict[str, Any]) -> VariabilityState:
        """The state before a pass."""
        lattice, pairs = component_lattice(problem.family), _pairs(problem.family)
        table = lattice.table(_shown(problem.family, maps))
        total = accumulate.empty(lattice, 1, 2 * len(maps) + len(pairs))
        start = {"angle": np.asarray(np.pi / 2), "passes": np.asarray(0)} | rest
        return VariabilityState(maps, table, noise, total, _nothing(len(maps)), **start)

    def step(
        self, key: Array, problem: Any, state: VariabilityState, batch: Batch
    ) -> tuple[VariabilityState, dict[str, Any]]:
        """Latents of a batch, and its share of the back-projections."""
        obs, lattice = problem.observation, component_lattice(problem.family)
        mode = Mode(obs, lattice, False, "posterior", _pairs(problem.family))
        cells, images, slices = look(mode, state.table, batch)
        values, spread = _estimate(mode, state.noise, batch, (cells.sign, images, slices))
        total = accumulate.add(lattice, state.total, cells, values)
        spread = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), state.spread, spread)
        return dataclasses.replace(state, total=total, spread=spread), {}

    def sweep(self, key: Array, problem: Any, state: VariabilityState) -> tuple[VariabilityState, dict[str, Any]]:
        """New components: least squares, filters, mask, and only then made orthonormal."""
        maps = self._orthonormal(problem, self._filtered(problem, self.solved(problem, state)))
        before, after = (_shown(problem.family, v)[1:] for v in (state.maps, maps))
        angle, passes = _largest_angle(before, after), int(state.passes) + 1
        rest = {"measured": state.maps, "known": state.spread, "angle": np.asarray(angle), "passes": np.asarray(passes)}
        report: dict[str, Any] = {"objective": float(state.spread.log_ratio / state.spread.particles), "angle": angle}
        report |= {name: [float(v) for v in values] for name, values in _eigenvalues(state.spread).items()}
        return self._began(problem, maps, state.noise, rest), report

    def solved(self, problem: Any, state: VariabilityState) -> Array:
        """The maps after the components' least squares, the latents and the mean map being given."""
        lattice, count = component_lattice(problem.family), len(state.maps)
        pairs = _pairs(problem.family)
        sums = accumulate.table(state.total, 2 * count + len(pairs))
        residual, weights = sums[:, : 2 * count], sums[:, 2 * count :]
        ball, held = Ball(lattice.size), _shown(problem.family, jnp.ones_like(state.maps)).at[0].set(0)
        data = jnp.stack([data_precision(lattice, weights[:, pairs.index((i, i))]) for i in range(count)])
        mean = ball.shell_sum(data * ball.mask).sum(-1) / ball.degrees.sum()
        ridge = jnp.broadcast_to(1 / (self.stabiliser * mean[:, None]), (count, ball.shells)).at[0].set(0)
        return volume_step(lattice, state.maps, residual, weights, ridge, self.solver_steps, pairs, held)[0]

    def _filtered(self, problem: Any, maps: Array) -> Array:
        frame = need_frame(problem.family)
        k = np.arange(Ball(frame.size).shells) / (frame.size * frame.spacing)
        gain = 1 / np.sqrt(1 + (k * self.low_pass) ** (2 * _LOW_ORDER))
        if self.high_pass is not None:
            gain = gain * np.sqrt(1 - 1 / (1 + (k * self.high_pass) ** (2 * _HIGH_ORDER)))
        filtered = Ball(frame.size).filter(maps[1:], jnp.asarray(gain, maps.dtype))
        return jnp.concatenate([maps[:1], filtered])

    def _orthonormal(self, problem: Any, maps: Array) -> Array:
        """Components that are orthonormal where the mask shows them, and without contrast to the mean map as well."""
        mask = _mask(problem.family)
        free = 0 if problem.observation.contrast is None else 1
        flat = np.asarray(maps[free:], np.float64).reshape(len(maps) - free, -1)
        seen = flat if mask is None else flat * np.asarray(mask, np.float64).ravel()
        found = np.linalg.solve(np.linalg.qr(seen.T)[1].T, flat)[1 - free :]
        return jnp.concatenate([maps[:1], jnp.asarray(found.reshape(maps[1:].shape), maps.dtype)])

    def finished(self, state: VariabilityState) -> bool:
        """Whether the components have come to rest."""
        return float(state.angle) < self.tolerance

    def draw(self, key: Array, problem: Any, state: VariabilityState) -> dict[str, Array]:
        """The subspace with latents of variance 1, the strongest component first."""
        family, shared = problem.family, problem.starting(key)
        mean, covariance = state.known.covariance(corrected=True)
        values, vectors = np.linalg.eigh(covariance)
        scale = np.sqrt(np.maximum(values, _LEAST * max(values.max(), 1e-30)))
        turn = jnp.asarray((vectors * scale).T[::-1], jnp.float32)
        components = jnp.tensordot(turn, state.measured[1:], 1)
        shift = jnp.tensordot(jnp.asarray(mean, jnp.float32), _shown(family, state.measured)[1:], 1)
        moved = state.measured[0] + Ball(shift.shape[-1]).filter(shift, jnp.ones(Ball(shift.shape[-1]).shells))
        maps = jnp.concatenate([moved[None], components])
        found = family.updated(shared, maps, spectra_of(maps, family.spectra(shared)), jnp.ones(1))
        return family.canonical(found) | {"noise": state.noise}

    def extra(self, problem: Any, state: VariabilityState) -> dict[str, np.ndarray]:
        """`eigenvalues_raw` and `eigenvalues`, of the estimates and with their errors taken out, (dims,)."""
        return _eigenvalues(state.known)

    def state_bytes(self, family: Any, size: int, halves: bool) -> int:
        """Memory of the state."""
        return EM().state_bytes(family, size, halves)


def _pairs(family: Any) -> Pairs:
    """All pairs of maps: all are in every image."""
    return tuple((i, j) for i in range(1 + family.dims) for j in range(i, 1 + family.dims))


def _mask(family: Any) -> Array | None:
    """The mask of the components, (N, N, N); None without one."""
    masks = family.masks({}) if isinstance(family, Masked) else None
    return None if masks is None else masks[-1]


def _shown(family: Any, maps: Array) -> Array:
    """The mean map, and the components through the mask."""
    mask = _mask(family)
    return maps if mask is None else maps.at[1:].multiply(mask)


def _nothing(count: int) -> Spread:
    zero = np.zeros
    return Spread(zero((count, count)), zero((count, count)), zero(()), zero(()))


def _eigenvalues(spread: Spread) -> dict[str, np.ndarray]:
    """Variances along the principal axes of the estimates, largest first: as they are, and with errors taken out."""
    corrected = spread.covariance(corrected=True)[1]
    values, vectors = np.linalg.eigh(corrected)
    raw = np.einsum("ij,ik,kj->j", vectors, spread.covariance(corrected=False)[1], vectors)
    return {"eigenvalues_raw": raw[::-1], "eigenvalues": values[::-1]}


def _largest_angle(a: Array, b: Array) -> float:
    """Of two sets of orthonormal maps [rad]."""
    one, other = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
    return float(np.arccos(np.clip(np.linalg.svd(one @ other.T, compute_uv=False).min(), 0, 1)))


def least_squares(h: Array, gram: Array, contrast: Contrast | None) -> tuple[Array, Array]:
    """Estimates of a (1, z) and the covariance of their errors, (rows, 1 + dims) and (rows, 1 + dims, 1 + dims).

    The scale a of an image is the best together with its latents, and 1 where images have no contrast of their own.

    Args:
        h, gram: see `hetmodels.local`, (rows, 1 + dims) and (rows, 1 + dims, 1 + dims).
        contrast: prior of the contrast; only whether there is one counts.
    """
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    free = slice(0 if contrast is not None else 1, None)
    precision, slope = 2 * gram[:, free, free], h[:, free]
    if contrast is None:
        slope = slope - 2 * gram[:, 0, 1:]
    ridge = _RIDGE * jnp.trace(precision, axis1=1, axis2=2) / precision.shape[-1]
    error = jnp.linalg.inv(precision + ridge[:, None, None] * jnp.eye(precision.shape[-1], dtype=h.dtype))
    found = exact("bij,bj->bi", error, slope)
    if contrast is not None:
        return found, error
    pad = ((0, 0), (1, 0), (1, 0))
    return jnp.concatenate([jnp.ones_like(h[:, :1]), found], axis=1), jnp.pad(error, pad)


@partial(jax.jit, static_argnums=0)
def _estimate(mode: Mode, noise: Array, batch: Batch, view: tuple) -> tuple[Array, Spread]:
    """What the pixels of a batch add at the estimates of their latents, and the estimates' moments."""
    obs, (_, images, slices) = mode.observation, view
    found = shell_statistics(images, slices, batch.ctf, obs.disc, mode.pairs)
    h, gram = found.weighted(noise[batch.group])
    b, error = least_squares(h, gram, obs.contrast)
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    second = b[:, :, None] * b[:, None, :]
    weight, variance = batch.weight, obs.pixel_variance(noise, batch.group)
    values = contributions(mode, batch, view, variance, (weight[:, None] * b, weight[:, None, None] * second))
    ratio = exact("bi,bi->b", b, h) - exact("bij,bij->b", second, gram)
    ratio += obs.zero_ratio(batch.images, variance)
    spread = Spread(jnp.tensordot(weight, second, 1), jnp.tensordot(weight, error, 1), weight @ ratio, weight.sum())
    return values, spread
