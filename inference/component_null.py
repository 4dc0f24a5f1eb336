"""How many components of motion a set of images supports: against images of the mean map alone.

Noise has leading components too. How strong they are is found by making the same images again - views, CTF, noise - of
the mean map alone, and estimating mean and covariance from them in the same way. A component counts if it is stronger
than the strongest in all but a twentieth of such sets.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.problem import ParticleProblem
from inference.em import EM
from inference.subspace_start import consensus, leading_components

DRAWS = 19  # of null sets: the strongest of all is exceeded by chance once in twenty


@dataclasses.dataclass(frozen=True, eq=False)
class SupportedComponents:
    """Components found and what noise alone gives.

    Attributes:
        strength: standard deviation of the maps along each component, strongest first, (count,).
        null: the same of the strongest component of each null set, (draws,).
    """

    strength: np.ndarray
    null: np.ndarray

    @property
    def line(self) -> float:
        """The strength that noise alone exceeds once in 1 + draws sets."""
        return float(self.null.max())

    @property
    def supported(self) -> int:
        """Number of components above the line."""
        return int(np.argmin(np.append(self.strength > self.line, False)))


def components_supported(
    key: Array, problem: ParticleProblem, engine: EM, count: int = 8, draws: int = DRAWS
) -> SupportedComponents:
    """Compare the leading components of the data with those of images of the mean map alone.

    Args:
        key: random key.
        problem: a linear family's, at known poses.
        engine: an EM, which makes the mean maps.
        count: components looked at.
        draws: null sets.

    Raises:
        ValueError: if count or draws are less than 1.
    """
    if count < 1 or draws < 1:
        raise ValueError(f"components_supported: count and draws must be at least 1, got {count} and {draws}.")
    mean, found, noise = _analysed(key, problem, engine, count)
    shared, null = {"map": mean, "noise": noise}, []
    for number in range(draws):
        still = Still(problem, shared, jax.random.fold_in(key, number))
        null.append(_analysed(key, still, engine, 1)[1][0])
    return SupportedComponents(found, np.array(null))


def _analysed(key: Array, problem: Any, engine: EM, count: int) -> tuple[Array, np.ndarray, Array]:
    """Mean map, strengths of the leading components about it, and the noise."""
    mean, _, noise = consensus(key, engine, problem)
    found = np.asarray(leading_components(problem, mean, noise, count, engine.batch_size), np.float64)
    return mean, np.linalg.norm(found.reshape(count, -1), axis=1), noise


class Still:
    """A problem whose images are of one map: made anew in each batch, the same in every pass.

    Args:
        inner: the problem, for its views, CTF and noise model.
        shared: `map` (N, N, N) and `noise` (groups, shells).
        key: random key of the images.
    """

    def __init__(self, inner: ParticleProblem, shared: dict[str, Array], key: Array) -> None:
        self.inner, self.key = inner, key
        self.plain = one_map(inner)
        self.shared = shared | {"map_tau2": jnp.ones(inner.observation.disc.shells)}
        self._draw = jax.jit(lambda key, shared, batch: self.plain.simulate(key, shared, batch)[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def batches(self, pass_: int, key: Array, size: int = 0, shuffle: bool = False) -> Iterator[Batch]:
        """The batches of the problem with other images."""
        for batch in self.inner.batches(0, key, size):
            yield self._draw(jax.random.fold_in(self.key, batch.index[0]), self.shared, batch)


def one_map(problem: ParticleProblem) -> ParticleProblem:
    """The same data with one map for all particles."""
    from hetmodels.families.homogeneous import Homogeneous

    family = Homogeneous(problem.family.order, problem.family.frame)
    given = {name: value for name, value in problem.given.items() if name in ("noise", "junk")}
    return ParticleProblem.of(family, problem.particles, problem.observation, given)
