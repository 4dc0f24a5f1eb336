"""What a family of heterogeneity declares, and the optional structure that engines may use."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

from jax import Array

from hetmodels.families.latent_mixture import LatentMixture
from hetmodels.tree import pytree
from hetmodels.volumes.protocol import Volume

Shared = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a family must know of the data to lay out its maps.

    Attributes:
        size: box edge D in pixels.
        spacing: pixel size [Å].
        power: first guess of the variance of a map's Fourier coefficients per shell, (D-1)//2 + 1 numbers.
    """

    size: int
    spacing: float
    power: tuple[float, ...]


@runtime_checkable
class Family(Protocol):
    """One kind of heterogeneity, as a frozen pytree. Nothing about CTF, noise, pose or plates stands here.

    A family whose maps live on the data's grid has a static field `frame: Frame | None = None`, which `fit` fills.
    """

    def shared(self) -> Shared:
        """Declare by `numpyro.sample` and `numpyro.param` what all particles have in common; return it by name."""

    def conformation(self, shared: Shared) -> Any:
        """Prior of one particle's latent: a NumPyro distribution, a dict of named ones, or None."""

    def volume(self, shared: Shared, z: Any) -> Volume:
        """The density of a particle with latent z."""


@runtime_checkable
class Linear(Family, Protocol):
    """The image is linear in maps: slice of sum_l b_l X_l, with weights b(z).

    A family may also have `from_maps(maps)`, the components that start from one map or several (else one map serves
    for all), and `canonical(shared)`, shared values of the same distribution in a stated gauge.
    """

    def components(self, shared: Shared) -> Array:
        """The maps X_l, (components, N, N, N)."""

    def spectra(self, shared: Shared) -> Array:
        """Prior variance per shell of each map, (components, shells)."""

    def design(self, z: Any) -> Any:
        """Weights b(z), (components,); of a `Moving` family `Parts`."""

    def updated(self, shared: Shared, components: Array, spectra: Array, occupancy: Array) -> Shared:
        """Shared values after an M-step.

        Args:
            shared: values before.
            components: new maps, (components, N, N, N).
            spectra: new prior variances, (components, shells).
            occupancy: expected number of particles at each node, (nodes,).
        """


@pytree
class Parts:
    """How a particle is put together from the maps of a family: image = C S(t) sum_l b_l S(R t_l) P(R Q_l) X_l.

    Attributes:
        weight: b_l, (components,).
        rotation: Q_l, (components, 3, 3).
        shift: t_l [Å], after the rotation, (components, 3).
    """

    weight: Array
    rotation: Array
    shift: Array


@runtime_checkable
class Moving(Linear, Protocol):
    """A linear family some of whose maps turn and shift with the latent: `design(z)` gives `Parts`.

    It is `Masked`, each map by its own mask, and the latent is enumerated (`grids`, whose nodes are arrays
    (nodes, dims) of coordinates with a meaning).
    """

    def masks(self, shared: Shared) -> Array:
        """The soft masks, (components, N, N, N)."""

    def grids(self, shared: Shared) -> tuple[Array, Array]:
        """Nodes (nodes, dims) of z and their log prior weights (nodes,)."""


@runtime_checkable
class Masked(Protocol):
    """A linear family whose maps X_l may be U_l times a soft mask; `components`, `spectra`, `updated` are about U_l."""

    def masks(self, shared: Shared) -> Array | None:
        """The masks, (components, N, N, N); None where the maps are not masked."""


def shown(family: Any, shared: Shared) -> Array:
    """The maps X_l of a linear family as images show them, each through its mask, (components, N, N, N)."""
    maps = family.components(shared)
    masks = family.masks(shared) if isinstance(family, Masked) else None
    return maps if masks is None else maps * masks


@runtime_checkable
class Gridded(Protocol):
    """The latent takes finitely many values, which are enumerated exactly."""

    def grids(self, shared: Shared) -> tuple[Array, Array]:
        """Nodes (nodes, …) of z and their log prior weights (nodes,)."""


@runtime_checkable
class Gaussian(Protocol):
    """z is Gaussian and b(z) = (1, z): it is integrated in closed form."""

    def latent_covariance(self, shared: Shared) -> Array:
        """Prior covariance of z, (dims, dims)."""


@runtime_checkable
class Mixed(Gaussian, Protocol):
    """z may come from one of several Gaussians: each is integrated in closed form.

    `latent_covariance` is then that of all together, and their mean is 0.
    """

    def latent_mixture(self, shared: Shared) -> LatentMixture | None:
        """The Gaussians with their weights; None where z is Gaussian."""

    def with_mixture(self, shared: Shared, mixture: LatentMixture) -> Shared:
        """Shared values with the Gaussians and weights given."""


def mixture_of(family: Any, shared: Shared) -> LatentMixture | None:
    """The mixture of Gaussians that the latents of a family come from; None where they come from one or are others."""
    return family.latent_mixture(shared) if isinstance(family, Mixed) else None


@runtime_checkable
class Neural(Protocol):
    """The density is the output of a neural network, whose weights are `param` sites."""

    def weights(self) -> tuple[str, ...]:
        """Names of the sites that are weights of the network; optimisers take smaller steps along them."""


@runtime_checkable
class Smooth(Protocol):
    """The latent is continuous and few, and its posterior has one mode: it is integrated by Laplace's approximation."""

    def origin(self, shared: Shared) -> Any:
        """Where the search for a particle's latent begins, in the form of z."""


def framed(family: Any, frame: Frame) -> Any:
    """The family laid out on the data's grid, if it asks for one and has none yet.

    By its own method `laid_out(frame)` where it has one, else by setting its field `frame`.
    """
    if getattr(family, "frame", frame) is None:
        if hasattr(family, "laid_out"):
            return family.laid_out(frame)
        return dataclasses.replace(family, frame=frame)
    return family


def need_frame(family: Any) -> Frame:
    """The family's frame.

    Raises:
        ValueError: if it has none.
    """
    if family.frame is None:
        name = type(family).__name__
        raise ValueError(f"{name}: the box is not known yet; `fit` sets it from the data, or give frame=Frame(...).")
    return family.frame
