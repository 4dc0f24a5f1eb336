"""A small molecule made by formula, for the demo and the tests: a body with a foot and an ear, and a swinging arm."""

import numpy as np

from hetmodels.errors import UsageError
from hetmodels.volumes.gaussians import Gaussians

SWING = np.deg2rad(70.0)  # from the first state to the last
REACH = 0.35  # farthest bead, as a part of the box edge
WIDTH = 1 / 64  # standard deviation of a bead, as a part of the box edge; at least a pixel


def phantom(states: int = 3, box: int = 64, pixel: float = 4.0) -> tuple[Gaussians, ...]:
    """Conformations of an asymmetric two-domain molecule of 120 beads, 36 of them in the swinging arm.

    Args:
        states: number of conformations, evenly spread over the swing of 70 degrees.
        box: box edge in pixels; the molecule reaches 0.35 of the edge from the centre.
        pixel: pixel size [Å].

    Raises:
        UsageError: if fewer than one state is asked for.

    >>> len(phantom(2)), phantom(1)[0].centres.shape
    (2, (120, 3))
    """
    import jax.numpy as jnp

    if states < 1:
        raise UsageError(f"phantom: the number of states must be at least 1, got {states}.")
    angles = np.linspace(-SWING / 2, SWING / 2, states) if states > 1 else np.zeros(1)
    body, arm, weights = _body(), _arm(), _weights()
    shapes = [np.concatenate([body, _swung(arm, angle)]) for angle in angles]
    centre = np.mean([weights @ s / weights.sum() for s in shapes], axis=0)
    farthest = max(np.linalg.norm(s - centre, axis=1).max() for s in shapes)
    edge = box * pixel
    widths = jnp.full(len(weights), max(WIDTH * edge, pixel), jnp.float32)
    return tuple(
        Gaussians(
            jnp.asarray((s - centre) * REACH * edge / farthest, jnp.float32), jnp.asarray(weights, jnp.float32), widths
        )
        for s in shapes
    )


def _body() -> np.ndarray:
    """A winding chain of 50 beads filling an uneven lump, a foot of 18 and an ear of 16, in units of its height."""
    t = np.linspace(0, 1, 50)
    turn = 2 * np.pi * 3.3 * t
    radius = 0.2 + 0.4 * np.sin(np.pi * t) * (1 + 0.3 * np.cos(1.7 * turn))
    lump = np.stack([radius * np.cos(turn), radius * np.sin(turn), 1.3 * (t - 0.5)], axis=1)
    s = np.linspace(0, 1, 18)
    foot = np.stack([0.45 + 0.75 * s, -0.3 - 0.3 * s**2, -0.6 + 0.2 * np.sin(5 * s)], axis=1)
    u = np.linspace(0, 1, 16)
    ear = np.stack([-0.35 - 0.35 * u**2, 0.4 + 0.7 * u, 0.1 - 0.45 * u], axis=1)
    return np.concatenate([lump, foot, ear])


def _arm() -> np.ndarray:
    """A bent rod of 36 beads with a knob at its end; its hinge is the origin."""
    s = np.linspace(0.08, 1, 24)
    rod = np.stack([0.18 * np.sin(2.2 * s), 0.25 * s**2, 1.1 * s], axis=1)
    u = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    knob = rod[-1] + np.stack([0.28 * np.cos(u), 0.24 * np.sin(u), 0.1 + 0.12 * np.sin(2 * u)], axis=1)
    return np.concatenate([rod, knob])


def _swung(arm: np.ndarray, angle: float) -> np.ndarray:
    """The arm turned by an angle [rad] about an axis across it, on its hinge at the top of the body."""
    c, s = np.cos(angle), np.sin(angle)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    tilt = np.deg2rad(25.0)
    lean = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
    return arm @ (lean @ about_x).T + np.array([0.15, 0.1, 0.6])


def _weights() -> np.ndarray:
    """Integrals of the beads: uneven along the chain, so that no symmetry is left; (120,)."""
    i = np.arange(120)
    return 1 + 0.4 * np.sin(0.7 * i) * np.cos(0.13 * i)
