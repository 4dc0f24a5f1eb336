"""A molecule whose bodies turn as rigid wholes: each has a mask, a map and, in every particle, an orientation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.errors import DataError, UsageError
from hetmodels.families.nodes import Nodes
from hetmodels.families.protocol import Frame, Parts, Shared, need_frame
from hetmodels.families.supports import read_support
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.rotations import from_rotvec
from hetmodels.tree import pytree, static
from hetmodels.volumes.parts import MovedParts

_REACH = 2.5  # standard deviations of a turn at which its nodes end
_MOST = 4096  # nodes


@pytree
class Multibody:
    """Rigid bodies that turn about pivots while the rest stays (Nakane et al. 2018, eLife 7, e36861).

    The file's pose is that of the rest. Body b turns by exp(omega_b), omega_b on a grid of rotation vectors that is
    enumerated; the frequencies of the nodes are free, with a Dirichlet prior about a normal density of spread `turn`,
    so that a population with two states has two peaks. The bodies' maps are solved jointly, each through its mask.

    Attributes:
        bodies: MRC files with a soft mask for each body that moves; what is outside all of them stays.
        turn: prior spread of the rotation vectors, per axis [rad].
        nodes: nodes per axis of a rotation vector; they reach 2.5 spreads to either side.
        axis: the axis (x, y, z) of all turns where it is known; then only the angle is enumerated.
        pivots: points (x, y, z) [Å] about the box centre that stay where they are when a body turns, three numbers
            for each body; else the point of its mask that is nearest to the box centre.
        concentration: pseudo-particles of the prior of the frequencies, per node.
        order: interpolation order of the slices, 1 (trilinear) or 3 (cubic).
        frame: box and pixel size, set by `fit`.
        supports: the masks themselves, (bodies, N, N, N); read from `bodies` by `fit`.

    Raises:
        ValueError: if a setting is out of range.
    """

    bodies: tuple[str, ...] = static(default=())
    turn: float = static(default=0.17)
    nodes: int = static(default=5)
    axis: tuple[float, ...] | None = static(default=None)
    pivots: tuple[float, ...] | None = static(default=None)
    concentration: float = static(default=1.0)
    order: int = static(default=1)
    frame: Frame | None = static(default=None)
    supports: Any = None

    def __post_init__(self) -> None:
        if not self.turn > 0 or self.nodes < 3 or not self.concentration > 0:
            raise ValueError(
                f"Multibody: turn and concentration must be positive and nodes at least 3, got {self.turn}, "
                f"{self.concentration} and {self.nodes}."
            )
        if self.axis is not None and (len(self.axis) != 3 or not any(self.axis)):
            raise ValueError(f"Multibody: the axis must be three numbers, not all zero, got {self.axis}.")

    def laid_out(self, frame: Frame) -> "Multibody":
        """On the data's grid, with the masks read and the pivots set.

        Raises:
            UsageError: if there is no mask, or there are more nodes than can be enumerated.
            DataError: if a mask does not fit the data.
        """
        if not self.bodies and self.supports is None:
            raise UsageError("Multibody: which bodies? Give family.bodies=MASK.mrc, one soft mask for each that moves.")
        given = (
            self.supports
            if self.supports is not None
            else np.stack([read_support(path, frame, "Multibody") for path in self.bodies])
        )
        supports = np.asarray(given, np.float32)
        supports = supports / np.maximum(supports.sum(0), 1)
        if supports.shape[1:] != (frame.size,) * 3:
            raise DataError(f"Multibody: masks must have {frame.size} voxels along an edge, got {supports.shape[1:]}.")
        total = self.nodes ** (len(supports) * (3 if self.axis is None else 1))
        if total > _MOST:
            raise UsageError(
                f"Multibody: {total} combinations of turns are too many to enumerate (at most {_MOST}); give a known "
                "family.axis, fewer family.nodes, or fewer bodies."
            )
        pivots = self.pivots or tuple(np.concatenate([_nearest(mask, frame) for mask in supports]).tolist())
        if len(pivots) != 3 * len(supports):
            raise UsageError(f"Multibody: pivots are {3 * len(supports)} numbers, x, y, z for each body: {pivots}.")
        return dataclasses.replace(self, frame=frame, supports=jnp.asarray(supports), pivots=pivots)

    @property
    def count(self) -> int:
        """Number of bodies that move."""
        return len(self.bodies) if self.supports is None else len(self.supports)

    @property
    def dims(self) -> int:
        """Latent coordinates: three for each body, or one about a known axis."""
        return self.count * (3 if self.axis is None else 1)

    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes (nodes, dims) [rad] and their prior frequencies."""
        line = np.linspace(-_REACH, _REACH, self.nodes)
        unit = np.stack(np.meshgrid(*[line] * self.dims, indexing="ij"), -1).reshape(-1, self.dims)
        prior = np.exp(-0.5 * (unit**2).sum(1))
        return (self.turn * unit).astype(np.float32), (prior / prior.sum()).astype(np.float32)

    def _counts(self) -> Array:
        """Pseudo-particles at each node."""
        prior = self._grid()[1]
        return jnp.asarray(self.concentration * len(prior) * prior)

    def shared(self) -> Shared:
        """Sites `maps_white`, `weights` (of the nodes) and `maps_tau2` (param).

        Returns `maps` U of the rest and the bodies before their masks (1 + bodies, N, N, N), `weights`, `maps_tau2`.
        """
        frame = need_frame(self)
        ball = Ball(frame.size)
        tau2 = numpyro.param("maps_tau2", jnp.asarray(frame.power), constraint=dist.constraints.positive)
        white = numpyro.sample("maps_white", dist.Normal(0, 1).expand([1 + self.count, ball.coordinates]).to_event(2))
        weights = numpyro.sample("weights", dist.Dirichlet(1 + self._counts()))
        return {"maps": numpyro.deterministic("maps", ball.colour(white, tau2)), "maps_tau2": tau2, "weights": weights}

    def conformation(self, shared: Shared) -> dist.Distribution:
        """Rotation vectors of the bodies one after the other, or angles about the axis [rad], (dims,)."""
        return Nodes(*self.grids(shared))

    def volume(self, shared: Shared, z: Array) -> MovedParts:
        """The rest, and the bodies turned."""
        parts = self.design(z)
        seen = shared["maps"] * self.masks(shared)
        spacing = need_frame(self).spacing
        return MovedParts(seen, parts.weight, parts.rotation, parts.shift, spacing, self.order)

    def components(self, shared: Shared) -> Array:
        """The maps U before their masks, (1 + bodies, N, N, N)."""
        return shared["maps"]

    def masks(self, shared: Shared) -> Array:
        """The masks of the rest and of the bodies, (1 + bodies, N, N, N); they sum to 1."""
        return jnp.concatenate([1 - self.supports.sum(0, keepdims=True), self.supports])

    def spectra(self, shared: Shared) -> Array:
        """The common spectrum, repeated, (1 + bodies, shells)."""
        return jnp.broadcast_to(shared["maps_tau2"], (1 + self.count, *shared["maps_tau2"].shape))

    def design(self, z: Array) -> Parts:
        """The rest where it is, every body turned about its pivot."""
        turns = z.reshape(self.count, -1)
        if self.axis is not None:
            turns = turns * (np.asarray(self.axis) / np.linalg.norm(self.axis)).astype(np.float32)
        rotation = jax.vmap(from_rotvec)(turns)
        pivots = jnp.asarray(self.pivots, rotation.dtype).reshape(-1, 3)
        stays = pivots - jnp.einsum("bij,bj->bi", rotation, pivots, precision=jax.lax.Precision.HIGHEST)
        eye = jnp.eye(3, dtype=rotation.dtype)[None]
        return Parts(
            jnp.ones(1 + self.count),
            jnp.concatenate([eye, rotation]),
            jnp.concatenate([jnp.zeros((1, 3), stays.dtype), stays]),
        )

    def grids(self, shared: Shared) -> tuple[Array, Array]:
        """All nodes with their log frequencies."""
        return jnp.asarray(self._grid()[0]), jnp.log(shared["weights"])

    def from_maps(self, maps: Array) -> Array:
        """Components that start from a consensus map, which all share, or one for each."""
        return jnp.broadcast_to(maps, (1 + self.count, *maps.shape[1:]))

    def updated(self, shared: Shared, components: Array, spectra: Array, occupancy: Array) -> Shared:
        """Shared values after an M-step; the frequencies at their conditional mode."""
        counts = occupancy + self._counts()
        return {"maps": components, "weights": counts / counts.sum(), "maps_tau2": spectra.mean(0)}

    def sites(self, shared: Shared) -> Shared:
        """Values of the sites that give these shared values."""
        white = Ball(need_frame(self).size).whiten(shared["maps"], shared["maps_tau2"])
        return {"maps_white": white, "weights": shared["weights"], "maps_tau2": shared["maps_tau2"]}


def _nearest(mask: np.ndarray, frame: Frame) -> np.ndarray:
    """The point (x, y, z) [Å] of a mask that is nearest to the box centre."""
    inside = np.argwhere(mask > 0.5 * mask.max())[:, ::-1] - frame.size // 2
    return frame.spacing * inside[(inside**2).sum(1).argmin()].astype(float)
