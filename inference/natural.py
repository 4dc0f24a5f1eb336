"""Steps towards the best normal approximation of each particle's own posterior."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_LEAST, _MOST = 0.1, 1e4  # change of the precision in one step, along each axis
_FARTHEST = 10.0  # that the mean moves in one step, in standard deviations before or after, the larger


@dataclasses.dataclass(frozen=True)
class NaturalSteps:
    """Natural-gradient steps of N(m, P^-1) up the evidence lower bound of one particle, for all rows side by side.

    At the optimum E grad log p = 0 and P = -E hess log p (Opper and Archambeau 2009, Neural Comput. 21); a step goes
    there as if log p were quadratic, where one suffices. Expectations are sums over points on both sides along each
    axis and the centre, of fifth order where dims is 1 (Julier and Uhlmann 2004, Proc. IEEE 92) and without the centre
    from 3 dims on (Arasaratnam and Haykin 2009, IEEE TAC 54). The curvature is that of the gradients between them, so
    that kinks of a network do no harm. A step that lowers the bound is taken back and shortened.

    Attributes:
        steps: how many; each takes the gradient at 2 dims points, or one more.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"NaturalSteps: steps must be at least 1, got {self.steps}.")

    def __call__(self, log_joint: Callable[[Array], Array], mean: Array, precision: Array) -> tuple[Array, Array]:
        """Mean (rows, dims) and precision (rows, dims, dims) after the steps.

        Args:
            log_joint: log density of each row's latents, (rows, dims) -> (rows,), differentiable.
            mean: to start from, (rows, dims).
            precision: likewise, (rows, dims, dims), positive definite.
        """
        mean, precision = jax.lax.stop_gradient((mean, precision))
        at = _expected(log_joint, mean, precision)

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            mean, precision, at, share = carry
            candidate = jax.vmap(_moved)(mean, precision, at[1], at[2], share)
            there = _expected(log_joint, *candidate)
            better = there[0] >= at[0] - 1e-3  # within rounding of the sums

            def choose(new: Array, old: Array) -> Array:
                return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            kept = jax.tree.map(choose, (*candidate, there), (mean, precision, at))
            return (*kept, jnp.where(better, jnp.minimum(1.0, 2 * share), share / 4)), None

        begin = (mean, precision, at, jnp.ones(len(mean), mean.dtype))
        (mean, precision, _, _), _ = jax.lax.scan(step, begin, None, length=self.steps)
        return jax.lax.stop_gradient((mean, precision))


def _expected(log_joint: Callable, mean: Array, precision: Array) -> tuple[Array, Array, Array]:
    """The bound but for a constant (rows,), and mean gradient and curvature where q is N(0, I)."""
    rows, dims = mean.shape
    root = jnp.linalg.cholesky(precision)
    axes = jax.vmap(lambda c: jax.scipy.linalg.solve_triangular(c.T, jnp.eye(dims), lower=False))(root)
    reach = max(3.0, dims) ** 0.5
    sides = reach * jnp.moveaxis(axes, 2, 0)
    points = jnp.concatenate([mean + sides, mean - sides] + [mean[None]] * (dims < 3))
    weights = np.full(len(points), 0.5 / reach**2, np.float32)
    weights[2 * dims :] = 1 - dims / reach**2
    one = jax.value_and_grad(lambda u: (lambda each: (each.sum(), each))(log_joint(u)), has_aux=True)
    (_, value), slope = jax.lax.map(one, points)
    slope = jnp.einsum("prd,rde->pre", slope, axes)
    curvature = jnp.moveaxis(slope[:dims] - slope[dims : 2 * dims], 0, 1) / (2 * reach)
    spread = jnp.log(jnp.diagonal(root, axis1=1, axis2=2)).sum(1)
    mean_value, mean_slope = (jnp.tensordot(weights, each, axes=1) for each in (value, slope))
    return mean_value - spread, mean_slope, (curvature + jnp.swapaxes(curvature, 1, 2)) / 2


def _moved(mean: Array, precision: Array, slope: Array, curvature: Array, share: Array) -> tuple[Array, Array]:
    """One step of a row: the given share of the way, no farther than is trusted."""
    values, vectors = jnp.linalg.eigh(-curvature)
    values = 1 - share + share * jnp.clip(values, _LEAST, _MOST)
    root = jnp.linalg.cholesky(precision)
    move = share * (vectors.T @ slope) / values
    length = jnp.linalg.norm(move * jnp.minimum(1.0, jnp.sqrt(values)))
    move = vectors @ (move * jnp.minimum(1.0, _FARTHEST / (length + 1e-30)))
    inverse = jax.scipy.linalg.solve_triangular(root.T, move, lower=False)
    wider = root @ vectors
    return mean + inverse, (wider * values) @ wider.T
