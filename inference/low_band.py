"""The same problem at a lower resolution, where a pass costs little, and what was found there in the full box again.

A Fourier crop from N to n pixels keeps the values of maps in space; their coefficients become (n/N)^2 of what they
were, and spectra (n/N)^4.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hetmodels.families.protocol import Frame, Shared, framed, need_frame
from hetmodels.imaging.resample import resampled
from hetmodels.observation import Radial
from hetmodels.problem import ParticleProblem

_RESOLUTION = 14.0  # what motions of domains need [Å]
_SMALLEST, _LARGEST = 32, 64  # boxes [pixels]
_WORTH = 0.75  # of the box; above this part a pass would cost nearly as much
_EDGE = 3  # last shells of the low band, from which spectra are continued


def lowered(problem: ParticleProblem) -> ParticleProblem:
    """The problem on Fourier-cropped images; itself where the images are small already.

    Args:
        problem: of a family whose maps live on the data's grid. Values to start from and values given go along.
    """
    whole, frame = problem.particles, need_frame(problem.family)
    edge = 2 * int(np.ceil(whole.size * whole.spacing / _RESOLUTION)) + 2
    box = int(np.clip(edge + edge % 4, _SMALLEST, _LARGEST))
    if box > _WORTH * whole.size:
        return problem
    particles = whole.cropped(box)
    shells, ratio = particles.disc.shells, _ratio(whole, particles)
    frame = Frame(box, particles.spacing, tuple((np.array(frame.power[:shells]) * (box / whole.size) ** 4).tolist()))

    def low(values: dict[str, Any]) -> dict[str, Any]:
        return {name: _low(name, value, frame, whole.size, ratio) for name, value in values.items()}

    noise = low({"noise": problem.starting(jax.random.key(0))["noise"]})["noise"]
    kind = problem.observation.noise
    field = "start" if isinstance(kind, Radial) else "values"
    kind = dataclasses.replace(kind, **{field: tuple(map(tuple, np.asarray(noise).tolist()))})
    observation = dataclasses.replace(problem.observation, disc=particles.disc, spacing=particles.spacing, noise=kind)
    family = _narrowed(problem.family, frame)
    return ParticleProblem.of(family, particles, observation, low(problem.given), low(problem.start))


def raised(shared: Shared, low: ParticleProblem, problem: ParticleProblem) -> Shared:
    """Shared values found in the low band, in the full box.

    Beyond the band maps are 0 and the noise is the first guess; the spectrum of the mean is what the images show, and
    those of components keep their proportion to it.

    Args:
        shared: `map`, `components`, `map_tau2`, `components_tau2`, `noise` and what has no resolution.
        low: the problem they are of, made by `lowered`.
        problem: the full one.
    """
    if low is problem:
        return shared
    size, box = problem.particles.size, low.particles.size
    shells, ratio = low.particles.disc.shells, _ratio(problem.particles, low.particles)
    found = dict(shared)
    for name in ("map", "components"):
        found[name] = jnp.asarray(resampled(np.asarray(shared[name]), size))
    power = np.array(need_frame(problem.family).power)
    mean = np.asarray(shared["map_tau2"]) * (size / box) ** 4
    own = np.asarray(shared["components_tau2"]) * (size / box) ** 4
    share = own[:, -_EDGE:].mean(1) / max(mean[-_EDGE:].mean(), 1e-30)
    beyond = power[shells:]
    found["map_tau2"] = jnp.asarray(np.concatenate([mean, beyond]), jnp.float32)
    found["components_tau2"] = jnp.asarray(np.concatenate([own, share[:, None] * beyond], axis=1), jnp.float32)
    noise = problem.starting(jax.random.key(0))["noise"]
    found["noise"] = jnp.asarray(noise).at[:, :shells].set(np.asarray(shared["noise"]) / ratio)
    return found


def _ratio(whole: Any, low: Any) -> np.ndarray:
    """Reference spectrum of the full images over that of the cropped ones in their band, (groups, shells)."""
    return whole.reference[:, : low.disc.shells] / np.maximum(low.reference, 1e-30)


def _low(name: str, value: Any, frame: Frame, size: int, ratio: np.ndarray) -> Any:
    """A value in the low band, by what it is: a map, a spectrum of maps, one of noise, or none of these."""
    value = np.asarray(value)
    if name == "noise":
        return jnp.asarray(value[:, : ratio.shape[1]] * ratio, jnp.float32)
    if name.endswith("tau2"):
        return jnp.asarray(value[..., : len(frame.power)] * (frame.size / size) ** 4)
    return jnp.asarray(resampled(value, frame.size) if value.shape[-3:] == (size,) * 3 else value)


def _narrowed(family: Any, frame: Frame) -> Any:
    """The family on a smaller grid, its mask resampled."""
    changes: dict[str, Any] = {"frame": None}
    if getattr(family, "region", None) is not None:
        changes["region"] = jnp.clip(jnp.asarray(resampled(np.asarray(family.region), frame.size)), 0, 1)
    return framed(dataclasses.replace(family, **changes), frame)
