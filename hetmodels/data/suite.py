"""Sets of known heterogeneity in the manner of CryoBench (Jeon et al. 2024, NeurIPS), of molecules made by formula.

One motion, motions of many kinds, parts that come and go, many species, and an ensemble that fluctuates. The sets
differ from CryoBench's in molecule, size and number of states: scores are not comparable number by number.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from hetmodels.data.phantom import REACH, WIDTH, phantom
from hetmodels.volumes.gaussians import Gaussians

_LUMP, _FOOT, _EAR, _ARM = slice(0, 50), slice(50, 68), slice(68, 84), slice(84, 120)
_CONE = np.deg2rad(110.0)  # largest turn of the arm on a flexible linker
_STEPS, _STEP, _CUTOFF, _STIFF = 60, 0.02, 0.1, 1.0  # of the Langevin dynamics; lengths in box edges
_HEAT = 4.0  # kT over stiffness times the squared spacing of the beads


@dataclasses.dataclass(frozen=True, eq=False)
class Suite:
    """One set of the suite.

    Attributes:
        name: as on the command line.
        like: the set of CryoBench that asks the same question.
        words: what differs between particles.
        volumes: one per state.
        latents: coordinates of the states, (states, q), or None where there are none.
        weights: relative numbers of the states, or None for equal ones.
    """

    name: str
    like: str
    words: str
    volumes: tuple[Gaussians, ...]
    latents: np.ndarray | None
    weights: tuple[float, ...] | None


def _volumes(shapes: list[np.ndarray], weights: list[np.ndarray], box: int, pixel: float) -> tuple[Gaussians, ...]:
    """Beads of one width, brought to a common centre and into the box."""
    import jax.numpy as jnp

    edge = box * pixel
    centre = np.mean([w @ s / w.sum() for s, w in zip(shapes, weights, strict=True)], axis=0)
    farthest = max(np.linalg.norm(s - centre, axis=1).max() for s in shapes)
    scale = min(1.0, (REACH + 0.07) * edge / farthest)
    return tuple(
        Gaussians(
            jnp.asarray((s - centre) * scale, jnp.float32),
            jnp.asarray(w, jnp.float32),
            jnp.full(len(s), max(WIDTH * edge, pixel), jnp.float32),
        )
        for s, w in zip(shapes, weights, strict=True)
    )


def _molecule(box: int, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Beads of the built-in molecule [Å], (120, 3), and their weights."""
    (whole,) = phantom(1, box, pixel)
    return np.asarray(whole.centres, float), np.asarray(whole.weights, float)


def _with_arm(centres: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The molecule with its arm turned about its hinge by a rotation vector [rad]."""
    from scipy.spatial.transform import Rotation

    arm = centres[_ARM]
    moved = Rotation.from_rotvec(vector).apply(arm - arm[0]) + arm[0]
    return np.concatenate([centres[: _ARM.start], moved])


def _one_motion(states: int, box: int, pixel: float, rng: np.random.Generator) -> Suite:
    """The arm goes once round an axis at 60 degrees to it."""
    centres, weights = _molecule(box, pixel)
    angle = np.linspace(0, 2 * np.pi, states, endpoint=False)
    along = centres[-1] - centres[_ARM.start]
    across = np.cross(along, [1.0, 0.0, 0.0])
    axis = 0.5 * along / np.linalg.norm(along) + np.sqrt(0.75) * across / np.linalg.norm(across)
    shapes = [_with_arm(centres, a * axis) for a in angle]
    place = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    volumes = _volumes(shapes, [weights] * states, box, pixel)
    return Suite("motion", "IgG-1D", "an arm turns round one axis", volumes, place, None)


def _random_linker(states: int, box: int, pixel: float, rng: np.random.Generator) -> Suite:
    """The arm is anywhere within a cone."""
    centres, weights = _molecule(box, pixel)
    direction = rng.normal(size=(states, 3))
    vectors = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    vectors *= _CONE * rng.uniform(0, 1, (states, 1)) ** (1 / 3)
    shapes = [_with_arm(centres, v) for v in vectors]
    volumes = _volumes(shapes, [weights] * states, box, pixel)
    return Suite("linker", "IgG-RL", "an arm on a flexible linker", volumes, vectors, None)


def _assembly(states: int, box: int, pixel: float, rng: np.random.Generator) -> Suite:
    """Foot, ear, arm and half of the lump come and go, in all sixteen ways, some much rarer than others."""
    centres, weights = _molecule(box, pixel)
    parts = (_FOOT, _EAR, _ARM, slice(0, 25))
    shapes, kept = [], []
    for pattern in range(min(states, 16)):
        keep = np.ones(len(centres), bool)
        for number, part in enumerate(parts):
            keep[part] = not pattern >> number & 1
        shapes.append(centres[keep])
        kept.append(weights[keep])
    share = tuple((1.0 / (1 + rng.permutation(len(shapes)) / 4)).tolist())
    return Suite("assembly", "Ribosembly", "parts come and go", _volumes(shapes, kept, box, pixel), None, share)


def _species(states: int, box: int, pixel: float, rng: np.random.Generator) -> Suite:
    """Unrelated molecules of many sizes: random chains."""
    shapes, weights = [], []
    for _ in range(states):
        beads = int(rng.integers(40, 140))
        steps = rng.normal(size=(beads, 3))
        chain = np.cumsum(steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
        chain -= chain.mean(0)
        reach = REACH * (beads / 140) ** (1 / 3) * box * pixel
        shapes.append(chain * reach / np.linalg.norm(chain, axis=1).max())
        weights.append(1 + 0.4 * rng.normal(size=beads) ** 2)
    return Suite("species", "Tomotwin-100", "unrelated molecules", _volumes(shapes, weights, box, pixel), None, None)


def _ensemble(states: int, box: int, pixel: float, rng: np.random.Generator) -> Suite:
    """Frames of Langevin dynamics of the molecule as an elastic network."""
    centres, weights = _molecule(box, pixel)
    frames = _langevin(centres / (box * pixel), states, rng)
    shapes = [frame * box * pixel for frame in frames]
    volumes = _volumes(shapes, [weights] * states, box, pixel)
    return Suite("ensemble", "Spike-MD", "a molecule that fluctuates", volumes, None, None)


def _langevin(start: np.ndarray, frames: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Overdamped Langevin dynamics of springs between near beads, frames superposed on the start."""
    from scipy.spatial.transform import Rotation

    apart = np.linalg.norm(start[:, None] - start, axis=2)
    i, j = np.nonzero(np.triu((apart < _CUTOFF) & (apart > 0)))
    rest = apart[i, j]
    chain = np.linalg.norm(np.diff(start, axis=0), axis=1).mean()
    degree = np.bincount(np.concatenate([i, j]), minlength=len(start)).max()
    step, noise = _STEP, np.sqrt(2 * _STEP * _HEAT * _STIFF) * chain / np.sqrt(degree)
    x, found = start.copy(), []
    for _ in range(frames):
        for _ in range(_STEPS):
            vector = x[i] - x[j]
            length = np.linalg.norm(vector, axis=1)
            pull = _STIFF * ((length - rest) / np.maximum(length, 1e-9))[:, None] * vector
            force = np.zeros_like(x)
            np.add.at(force, i, -pull)
            np.add.at(force, j, pull)
            x = x + step * force + noise * rng.normal(size=x.shape)
        x = x - x.mean(0) + start.mean(0)
        turn, _ = Rotation.align_vectors(start - start.mean(0), x - x.mean(0))
        found.append(turn.apply(x - x.mean(0)) + start.mean(0))
    return found


SUITES: dict[str, Callable[[int, int, float, np.random.Generator], Suite]] = {
    "motion": _one_motion,
    "linker": _random_linker,
    "assembly": _assembly,
    "species": _species,
    "ensemble": _ensemble,
}


def suite(name: str, states: int, box: int, pixel: float, seed: int = 0) -> Suite:
    """A set of the suite.

    Args:
        name: one of `SUITES`.
        states: number of states; `assembly` has sixteen at most.
        box: image edge in pixels.
        pixel: pixel size [Å].
        seed: of what is random in the set.
    """
    return SUITES[name](states, box, pixel, np.random.default_rng([seed, list(SUITES).index(name)]))
