"""First maps where poses are unknown and no map is given: stochastic expectation-maximisation from random blobs.

Small batches, each an E-step over poses by search and a volume step of its own; the maps follow with momentum, as
averages over the batches (online EM, Cappé and Moulines 2009, J. R. Stat. Soc. B 71). What keeps a wrong first guess
from feeding itself is as in stochastic gradient descent for cryo-EM (Punjani et al. 2017, Nat. Methods 14) and VDAM
(Kimanius et al. 2021, Biochem. J. 478): low frequencies first, noise taken as stronger than it is, batches that grow,
maps held inside a soft ball. Several starts are made, and the one that explains the images best is kept.
"""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.errors import UsageError
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.families.protocol import Gaussian, Gridded, Linear, Moving, need_frame
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.poses import finest_order
from hetmodels.imaging.symmetry import symmetrised
from hetmodels.local import component_lattice
from hetmodels.selection import PoseTable
from inference.updates import noise_spectra

_log = logging.getLogger("hetmodels.fit")
_LOWEST, _HIGHEST = 0.3, 0.6  # of the band, in which frequencies are marched through
_SHARED = 0.4  # of the band: what half sets take over of the first map
_RADIUS, _EDGE = 0.42, 0.08  # of the box: the soft ball that holds the maps
_STAGES = 2  # widenings of the band
_HEAT = 4.0  # times the noise, in the beginning
_FIRST, _LAST = 0.2, 0.3  # shares of the batches before and after the march
_SETTLED = 0.2  # share of the last batches, whose evidence judges a start


@dataclasses.dataclass(frozen=True)
class AbInitio:
    """Settings of the search for first maps.

    Attributes:
        steps: batches of a start, each followed by a step of the maps.
        particles: of a part of a batch; all parts have one size, so that they are compiled once.
        parts: of the last batches; the first have one.
        starts: random starts.
        rate: by how much of its own step a batch moves the maps in the beginning.
        slowest: likewise in the end.
    """

    steps: int = 50
    particles: int = 200
    parts: int = 2
    starts: int = 2
    rate: float = 0.6
    slowest: float = 0.2

    def __post_init__(self) -> None:
        if min(self.steps, self.particles, self.parts, self.starts) < 1 or not 0 < self.slowest <= self.rate <= 1:
            raise ValueError(
                "AbInitio: counts must be at least 1 and rates lie in (0, 1], the slowest no more than the first, "
                f"got {self!r}."
            )

    def find(self, key: Array, engine: Any, problem: Any) -> Array:
        """The components that explain the images best, low-passed, (components, N, N, N).

        Args:
            key: random key.
            engine: an EM, whose steps are taken.
            problem: the problem, without maps to start from.

        Raises:
            UsageError: if the family's maps are parts of a particle.
        """
        if not self.serves(problem.family):
            raise UsageError(
                f"em: {type(problem.family).__name__} with unknown poses needs maps to start from. Find a map with "
                "--family homogeneous, and give it by --reference."
            )
        found, task = [], _coarse(_of_one_map(problem))
        for number, own in enumerate(jax.random.split(key, self.starts)):
            found.append(_Start(self, engine, task).run(own))
            _log.info(
                "first maps %d of %d, from random blobs: log evidence %.2f nats per particle",
                number + 1, self.starts, found[-1][1],
            )  # fmt: skip
        maps = max(found, key=lambda pair: pair[1])[0]
        if task.family is not problem.family:
            _log.warning(
                "classes begin from one map, every image at a class at random, and are as good as it is: a poor one "
                "leaves them mixed. Give --reference once per class where there are maps."
            )
            maps = problem.family.from_maps(maps)
        if not problem.halves:
            return maps
        # halves are independent beyond the band that they start from in common
        ball, top = Ball(maps.shape[-1]), _SHARED * problem.observation.disc.limit
        return ball.filter(maps, jnp.asarray(np.arange(ball.shells) <= top, jnp.float32))

    @staticmethod
    def serves(family: Any) -> bool:
        """Whether first maps can be found: a family of densities that could be blobs, or one that has a mean map."""
        return isinstance(family, Linear) and not isinstance(family, Moving)


def begun(key: Array, engine: Any, problem: Any) -> Any:
    """The problem with maps to start from, where poses are to be searched and none are given.

    Args:
        key: random key.
        engine: an EM.
        problem: what it sees.
    """
    if problem.started or not problem.searches or problem.observation.pose.placed or _from_moments(problem.family):
        return problem
    maps = engine.ab_initio.find(jax.random.fold_in(key, 3), engine, problem)
    family, shared = problem.family, problem.shared(problem.initial(key))
    start = family.updated(shared, maps, family.spectra(shared), jnp.ones(_nodes(family, shared)))
    return dataclasses.replace(problem, start=dict(start))


def _from_moments(family: Any) -> bool:
    """Whether its start is made from a mean map by moments (`inference.subspace_start`)."""
    return isinstance(family, Gaussian)


def _of_one_map(problem: Any) -> Any:
    """The problem with one map for all classes.

    Maps that compete from the beginning end with all images at the one that is ahead (measured: 1,500 of 1,500). From
    one map for all, EM begins with every image at a class at random, and goes on softly.
    """
    family = problem.family
    if not isinstance(family, Gridded) or not hasattr(family, "from_maps"):
        return problem
    given = {name: value for name, value in problem.given.items() if name == "noise"}
    one = Homogeneous(order=family.order, frame=family.frame)  # type: ignore[attr-defined]
    return type(problem).of(one, problem.particles, problem.observation, given, halves=problem.halves)


def _coarse(problem: Any) -> Any:
    """The problem with one copy of the maps and a coarse search."""
    obs = problem.observation
    order = min(obs.pose.order, max(1, finest_order(_band(obs, 0.0)) - 2))
    pose = dataclasses.replace(
        obs.pose, order=order, oversampling=1, kept=min(obs.pose.kept, 64), poses=min(obs.pose.poses, 16), polish=0
    )
    return dataclasses.replace(problem, halves=False, observation=dataclasses.replace(obs, pose=pose))


def _band(obs: Any, progress: float) -> int:
    """The band at a share of the batches, in Fourier pixels."""
    along = np.clip((progress - _FIRST) / (1 - _FIRST - _LAST), 0, 1)
    top = obs.disc.limit
    stage = np.ceil(_STAGES * along) / _STAGES  # each band is compiled anew
    return max(min(4, top), round(top * (_LOWEST + (_HIGHEST - _LOWEST) * stage)))


@dataclasses.dataclass(frozen=True)
class _Start:
    """One start."""

    how: AbInitio
    engine: Any
    problem: Any

    def run(self, key: Array) -> tuple[Array, float]:
        """The maps found, and the log evidence per particle of the last batches."""
        obs, family = self.problem.observation, self.problem.family
        ball, hold = Ball(need_frame(family).size), _soft_ball(need_frame(family).size)
        shared = self.problem.shared(self.problem.initial(key))
        blobs = _blobs(key, ball, family, shared, hold, _band(obs, 0.0))
        start = family.updated(shared, blobs, family.spectra(shared), jnp.ones(_nodes(family, shared)))
        problem = dataclasses.replace(self.problem, start=dict(start))
        state, judged = self.engine.init(key, problem), []
        for number in range(self.how.steps):
            progress = number / max(self.how.steps - 1, 1)
            limit = _band(obs, progress)
            state = self._settings(state, limit, progress)
            true, heat = state.noise, _HEAT ** max(0.0, 1 - progress / (1 - _LAST))
            state = dataclasses.replace(state, noise=true * heat)
            key_b = jax.random.fold_in(key, number)
            for part, batch in enumerate(self._batch(key_b, progress)):
                state, _ = self.engine.step(jax.random.fold_in(key_b, part), problem, state, batch)
            state = dataclasses.replace(self.engine.settled(problem, state), noise=true)
            if progress >= 1 - _SETTLED:
                judged.append(float(state.sums.log_ratio) / float(state.sums.particles))
            state = self._moved(state, ball, hold, limit, progress)
        return state.maps[0], float(np.mean(judged))

    def _settings(self, state: Any, limit: int, progress: float) -> Any:
        """The state with the band of the batch, and with class probabilities as soft as they are to be."""
        table: PoseTable = dataclasses.replace(state.poses, limit=np.asarray(limit))
        passes = int(round(self.engine.anneal * min(1.0, progress / (1 - _LAST))))
        return dataclasses.replace(state, poses=table, passes=np.asarray(max(1, passes)))

    def _batch(self, key: Array, progress: float) -> list[Any]:
        """Particles drawn at random, in parts of one size."""
        size, count = min(self.how.particles, self.problem.size), 1 + int((self.how.parts - 0.5) * progress)
        most = max(1, self.problem.size // size)
        drawn = jax.random.permutation(key, self.problem.size)[: size * min(count, most)]
        rows = np.sort(self.problem.training[np.asarray(drawn)].reshape(-1, size), axis=1)
        return [self.problem.batch(part) for part in rows]

    def _moved(self, state: Any, ball: Ball, hold: np.ndarray, limit: int, progress: float) -> Any:
        """Maps, noise and occupancies after a batch."""
        family, obs = self.problem.family, self.problem.observation
        fresh, (_, determined, _), _ = self.engine._moved(family, state)
        rate = self.how.rate * (self.how.slowest / self.how.rate) ** progress
        gain = jnp.asarray(np.arange(ball.shells) <= limit, jnp.float32)
        maps = state.maps + rate * (fresh - state.maps)
        maps = ball.filter(maps * hold, gain)
        maps = symmetrised(maps[0], obs.spacing, obs.pose.symmetry)[None]
        noise = state.noise
        if self.engine.learn_noise and "noise" not in self.problem.given:
            seen = noise_spectra(ball, state.sums, determined, state.noise)
            noise = state.noise * (seen / state.noise) ** (0.5 * rate)
        occupancy = jnp.asarray(state.sums.occupancy, jnp.float32)
        before = jnp.exp(family.grids(state.shared)[1]) * occupancy.sum() if isinstance(family, Gridded) else occupancy
        occupancy = before + rate * (occupancy - before)
        return dataclasses.replace(
            state,
            maps=maps,
            tables=component_lattice(family).table(maps[0]),
            shared=family.updated(state.shared, maps[0], state.spectra, occupancy),
            noise=noise,
            total=jax.tree.map(lambda leaf: 0 * leaf, state.total),
            sums=jax.tree.map(np.zeros_like, state.sums),
        )


def _nodes(family: Any, shared: Any) -> int:
    return len(family.grids(shared)[1]) if isinstance(family, Gridded) else 1


def _soft_ball(size: int) -> np.ndarray:
    """Weights of the voxels, (N, N, N): 1 inside, a raised cosine down to 0 at the edge of the box."""
    line = (np.arange(size) - size // 2) / size
    away = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)
    return (0.5 + 0.5 * np.cos(np.pi * np.clip((away - _RADIUS) / _EDGE, 0, 1))).astype(np.float32)


def _blobs(key: Array, ball: Ball, family: Any, shared: Any, hold: np.ndarray, limit: int) -> Array:
    """Random maps of the prior's power inside the ball, in the first band, (components, N, N, N)."""
    components, spectra = family.components(shared), family.spectra(shared)
    gain = jnp.asarray(np.arange(ball.shells) <= limit, jnp.float32)
    shape = (len(components), ball.coordinates)
    maps = ball.colour(jax.random.normal(key, shape), spectra) * _narrow(hold)
    maps = ball.filter(maps, gain)
    wanted = jnp.sum(spectra * gain * jnp.asarray(ball.degrees), axis=-1)
    power = jnp.sum(ball.power(maps) * jnp.asarray(ball.degrees), axis=-1)
    return maps * jnp.sqrt(wanted / jnp.maximum(power, 1e-30))[:, None, None, None]


def _narrow(hold: np.ndarray) -> np.ndarray:
    """A Gaussian in the middle of the ball, so that blobs start as one compact particle."""
    line = (np.arange(len(hold)) - len(hold) // 2) / len(hold)
    square = line[:, None, None] ** 2 + line[:, None] ** 2 + line**2
    return (hold * np.exp(-0.5 * square / 0.17**2)).astype(np.float32)
