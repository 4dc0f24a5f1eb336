"""How particles become images, apart from their density: pose, noise, contrast, junk. Each choice is an object."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.likelihood import contrast_ratio
from hetmodels.imaging.poses import PosePrior, nearest_order, step_of
from hetmodels.imaging.rotations import from_quaternion, from_rotvec
from hetmodels.imaging.symmetry import elements
from hetmodels.selection import PoseTable, as_given

_REACH = 3.5  # standard deviations at which a grid about given poses ends


class Pose(Protocol):
    """What is known of the poses."""

    def prior(self) -> dict[str, dist.Distribution]:
        """Named priors of one particle's pose latents; empty where the pose is known."""

    def place(self, latents: dict[str, Array], rotation: Array, shift: Array) -> tuple[Array, Array]:
        """Rotation (3, 3) and shift (2,) [Å] of one particle from its latents and the file's values."""


@dataclasses.dataclass(frozen=True)
class Known:
    """The file's poses are exact.

    Attributes:
        symmetry: point group of the particle, see `hetmodels.imaging.symmetry`.
    """

    symmetry: str = "C1"

    def __post_init__(self) -> None:
        elements(self.symmetry)

    def prior(self) -> dict[str, dist.Distribution]:
        """No latents."""
        return {}

    def place(self, latents: dict[str, Array], rotation: Array, shift: Array) -> tuple[Array, Array]:
        """The file's values."""
        return rotation, shift


@dataclasses.dataclass(frozen=True)
class Refined:
    """Poses spread about the file's values: A = exp(omega) A0, omega ~ N(0, rotation_sd^2), t ~ N(t0, shift_sd^2).

    Engines that integrate poses search a grid about the file's value, which ends at 3.5 standard deviations.

    Attributes:
        rotation_sd: spread per axis [rad].
        shift_sd: spread per axis [Å].
        mass, kept, poses, top, perturb, symmetry, polish: as for `Unknown`.

    Raises:
        ValueError: if a setting is out of range.
    """

    rotation_sd: float = 0.035
    shift_sd: float = 2.0
    mass: float = 0.999
    kept: int = 128
    poses: int = 32
    top: int = 8
    perturb: bool = True
    symmetry: str = "C1"
    polish: int = 0

    placed = True
    oversampling = 0

    def __post_init__(self) -> None:
        if not (self.rotation_sd > 0 and self.shift_sd > 0):
            raise ValueError(
                f"Refined: both spreads must be positive, got {self!r}; poses that do not move are Known()."
            )
        _check_counts(self)

    @property
    def order(self) -> int:
        """Order of the grid whose step is nearest to the spread of the rotations."""
        return nearest_order(self.rotation_sd)

    def prior(self) -> dict[str, dist.Distribution]:
        """`rotation` (3,) tangent vector [rad] and `shift` (2,) offset [Å]."""
        return {
            "rotation": dist.Normal(0.0, self.rotation_sd).expand([3]).to_event(1),
            "shift": dist.Normal(0.0, self.shift_sd).expand([2]).to_event(1),
        }

    def place(self, latents: dict[str, Array], rotation: Array, shift: Array) -> tuple[Array, Array]:
        """The file's pose moved by the latents."""
        turn = from_rotvec(latents["rotation"])
        moved = jnp.einsum("ij,jk->ik", turn, rotation, precision=jax.lax.Precision.HIGHEST)
        return moved, shift + latents["shift"]

    def plan(self, batch: Batch, pixel: float, levels: int, limit: int) -> Any:
        """Where to search, `hetmodels.search.Plan`: about the poses of the batch."""
        from hetmodels.search import Plan, Search

        how = Search(
            self.order, levels, limit, _REACH * self.shift_sd, self.shift_sd, self.mass, self.kept,
            top=max(self.poses, self.top), reach=_REACH * self.rotation_sd / step_of(self.order),
        )  # fmt: skip
        prior = PosePrior(batch.rotation, batch.shift, self.rotation_sd, self.shift_sd)
        return Plan(how, prior, batch.rotation, batch.shift)

    def table(self, problem: Any) -> PoseTable:
        """An empty table for the particles of a problem."""
        return PoseTable.empty(problem, self.top, 0)

    def refresh(self, key: Array | None, templates: Any, batch: Batch, table: PoseTable, copy: Array | None) -> Any:
        """Search the poses of a batch, see `Unknown.refresh`; where there are no maps yet, they are the file's."""
        if int(table.limit) == 0:
            return as_given(batch.rotation, batch.shift, self.order)
        plan = self.plan(batch, templates.observation.spacing, int(table.levels), int(table.limit))
        plan = plan.moved(key) if self.perturb and key is not None else plan
        return plan.resolved(templates, batch).run(templates, batch, copy)


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Poses are unknown: uniform rotations, Gaussian shifts about zero; the file's poses are not looked at.

    They are searched on a grid that is refined where an image's posterior lies (`hetmodels.search`).

    Attributes:
        order: HEALPix order of the grid over all rotations, steps of 60 degrees / 2^order.
        oversampling: how often its kept cells are split at first; engines that refine split further.
        shift_range: largest shift along any direction [px].
        shift_step: step of the first grid of shifts [px]; it is halved with every split.
        shift_sd: prior spread of the shifts per axis [px].
        mass: posterior mass that a search keeps before it splits.
        kept: rotations that are split per image at most.
        poses: poses per image that count in a reconstruction at most.
        top: poses per image that are kept in the results.
        local: order from which engines search about the last pose instead of everywhere.
        perturb: turn and move the grid at random, anew in each batch.
        symmetry: point group of the particle, see `hetmodels.imaging.symmetry`; of alike poses one is looked for.
        polish: Newton steps by which the likeliest pose leaves the grid in the results (`hetmodels.polish`).
        direction_counts: learn the density of viewing directions over 48 cells, with so many particles per cell
            counted beforehand; it stays even if none. Under em.
        spacing: pixel size [Å], set by `fit`.

    Raises:
        ValueError: if a setting is out of range.
    """

    order: int = 2
    oversampling: int = 1
    shift_range: float = 5.0
    shift_step: float = 2.0
    shift_sd: float = 2.0
    mass: float = 0.999
    kept: int = 128
    poses: int = 32
    top: int = 8
    local: int = 5
    perturb: bool = True
    symmetry: str = "C1"
    polish: int = 0
    direction_counts: float | None = None
    spacing: float | None = None

    placed = False

    def __post_init__(self) -> None:
        if not 0 <= self.order <= 5 or not 0 <= self.oversampling <= 4:
            raise ValueError(f"Unknown: order must lie in 0 … 5 and oversampling in 0 … 4, got {self!r}.")
        if not (self.shift_step > 0 and self.shift_sd > 0 and self.shift_range >= 0):
            raise ValueError(f"Unknown: shift_step and shift_sd must be positive, shift_range not negative: {self!r}.")
        if self.direction_counts is not None and not self.direction_counts > 0:
            raise ValueError(f"Unknown: direction_counts must be positive, got {self.direction_counts}.")
        _check_counts(self)

    def framed(self, spacing: float) -> "Unknown":
        """With the pixel size of the data [Å]."""
        return dataclasses.replace(self, spacing=float(spacing))

    @property
    def pixel(self) -> float:
        """Pixel size [Å]."""
        if self.spacing is None:
            raise ValueError("Unknown: the pixel size is not known yet; `fit` sets it from the data, or give spacing=.")
        return self.spacing

    def prior(self) -> dict[str, dist.Distribution]:
        """`rotation`: a quaternion of any length (4,), uniform in direction; `shift` (2,) [Å]."""
        return {
            "rotation": dist.Normal(0.0, 1.0).expand([4]).to_event(1),
            "shift": dist.Normal(0.0, self.shift_sd * self.pixel).expand([2]).to_event(1),
        }

    def place(self, latents: dict[str, Array], rotation: Array, shift: Array) -> tuple[Array, Array]:
        """The latents alone."""
        return from_quaternion(latents["rotation"]), latents["shift"]

    def plan(self, batch: Batch, pixel: float, levels: int, limit: int) -> Any:
        """Where to search, `hetmodels.search.Plan`: everywhere."""
        from hetmodels.search import Plan, Search

        how = Search(
            self.order, levels, limit, self.shift_range * pixel, self.shift_step * pixel, self.mass, self.kept,
            top=max(self.poses, self.top),
        )  # fmt: skip
        rows, kind = len(batch.weight), batch.weight.dtype
        eye, zero = jnp.broadcast_to(jnp.eye(3, dtype=kind), (rows, 3, 3)), jnp.zeros((rows, 2), kind)
        margin = 1.4 * step_of(self.order)  # two cells' radii
        prior = PosePrior(eye, zero, np.inf, self.shift_sd * pixel, self.symmetry, margin)
        return Plan(how, prior, eye, zero)

    def table(self, problem: Any) -> PoseTable:
        """An empty table for the particles of a problem."""
        table = PoseTable.empty(problem, self.top, self.oversampling)
        return table.learned(np.zeros(0, int), self.symmetry, self.direction_counts)

    def refresh(self, key: Array | None, templates: Any, batch: Batch, table: PoseTable, copy: Array | None) -> Any:
        """Search the poses of a batch: `hetmodels.search.Candidates`.

        Args:
            key: random key of the grid's place; None leaves it where it is.
            templates: maps and noise, `hetmodels.scoring.Templates`.
            batch: the images.
            table: says how fine and with which band, and where to search once that is done about the last pose:
                where the grid is fine enough and every image of the batch has one.
            copy: which copy of the maps each image is compared with, (rows,); the first if None.
        """
        from hetmodels.search import about_last

        levels, index = int(table.levels), np.asarray(batch.index)
        plan = self.plan(batch, templates.observation.spacing, levels, int(table.limit))
        near = self.order + levels >= self.local and bool(np.all(table.weight[index, 0] > 0))
        plan = plan.seen_from(table.directions)
        plan = about_last(plan, table, batch, self.oversampling) if near else plan
        plan = plan.moved(key) if self.perturb and key is not None else plan
        return plan.resolved(templates, batch).run(templates, batch, copy)


def _check_counts(pose: Refined | Unknown) -> None:
    elements(pose.symmetry)
    if pose.polish < 0:
        raise ValueError(f"{type(pose).__name__}: polish must not be negative, got {pose.polish}.")
    if not 0 < pose.mass <= 1 or min(pose.kept, pose.poses, pose.top) < 1:
        name = type(pose).__name__
        raise ValueError(f"{name}: mass must lie in (0, 1], kept, poses and top must be at least 1, got {pose!r}.")


@dataclasses.dataclass(frozen=True)
class Radial:
    """Noise with an unknown radial spectrum per optics group, point-estimated (site `noise`, a param).

    Attributes:
        start: first guess of the variance relative to the reference spectrum, groups x shells; ones if None.
    """

    start: tuple[tuple[float, ...], ...] | None = None

    def variance(self, groups: int, shells: int) -> Array:
        """Variance of each Fourier pixel relative to the reference spectrum, (groups, shells)."""
        start = jnp.ones((groups, shells)) if self.start is None else jnp.asarray(self.start)
        return numpyro.param("noise", start, constraint=dist.constraints.positive)


@dataclasses.dataclass(frozen=True)
class FixedNoise:
    """Noise of a known spectrum.

    Attributes:
        values: variance relative to the reference spectrum, groups x shells; ones if None.
    """

    values: tuple[tuple[float, ...], ...] | None = None

    def variance(self, groups: int, shells: int) -> Array:
        """See `Radial.variance`."""
        return jnp.ones((groups, shells)) if self.values is None else jnp.asarray(self.values)


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Each image's contrast a ~ N(1, sd^2), marginalised in closed form.

    Attributes:
        sd: spread, relative.
    """

    sd: float = 0.2

    def __post_init__(self) -> None:
        if not self.sd > 0:
            raise ValueError(
                f"Contrast: the spread must be positive, got {self.sd}; leave contrast out to fix it at 1."
            )


@dataclasses.dataclass(frozen=True)
class Outliers:
    """A share of junk: images without the particle, y ~ N(0, rho + excess), in place of the model.

    The excess is the power above the noise that an average image of the group has, so that junk is as bright as
    particles but without their structure.

    Attributes:
        alpha, beta: Beta prior of the share of junk (site `junk`).
    """

    alpha: float = 1.0
    beta: float = 20.0

    def share(self) -> Array:
        """Probability that an image is junk."""
        return numpyro.sample("junk", dist.Beta(self.alpha, self.beta))


@dataclasses.dataclass(frozen=True)
class Observation:
    """The measurement of a data set: everything between a density and its image.

    Attributes:
        disc: Fourier pixels of the images.
        spacing: pixel size [Å].
        groups: number of noise groups.
        particles: number of particles a full pass counts, the size of the plate.
        pose, noise, contrast, outliers: the choices.
        axes_kept: whether no particle's stretch mixes kx and ky, as anisotropic magnification does.
    """

    disc: Disc
    spacing: float
    groups: int
    particles: int
    pose: Any = Known()
    noise: Any = Radial()
    contrast: Contrast | None = None
    outliers: Outliers | None = None
    axes_kept: bool = False

    def pixel_variance(self, noise: Array, group: Array) -> Array:
        """Variance of each stored pixel, (rows, pixels), from (groups, shells)."""
        return noise[group][:, self.disc.shell]

    def junk_ratio(self, images: Array, variance: Array) -> Array:
        """log p(y | junk) - log p(y | noise only), (rows,).

        The reference spectrum is the mean power of the group's images, 1 after whitening.
        """
        broad = variance + jnp.maximum(1.0 - variance, 0.05)
        power = images.real**2 + images.imag**2
        return jnp.sum(power * (1 / variance - 1 / broad) - jnp.log(broad / variance), axis=-1)

    def zero_ratio(self, images: Array, variance: Array) -> Array:
        """log p(y | noise of this variance) - log p(y | noise of the reference spectrum), (rows,)."""
        power = images.real**2 + images.imag**2
        return jnp.sum(power * (1 - 1 / variance) - jnp.log(variance), axis=-1)


def marginal_ratio(linear: Array, quadratic: Array, contrast: Contrast | None) -> tuple[Array, Array, Array]:
    """log p(y | x) - log p(y | 0) with the contrast integrated, and its posterior moments.

    Args:
        linear: 2 Re <y, x> / sigma^2 summed over stored pixels, any shape.
        quadratic: |x|^2 / sigma^2 summed likewise.
        contrast: prior of the contrast a, or None for a = 1.

    Returns:
        The log ratio, E[a] and E[a^2], each of the shape given.
    """
    log_ratio, mean, variance = contrast_ratio(linear, quadratic, 0.0 if contrast is None else contrast.sd)
    return log_ratio, mean, mean**2 + variance


def split_junk(
    log_ratio: Array, observation: Observation, batch: Batch, variance: Array, share: Array | None
) -> tuple[Array, Array]:
    """Mix the junk component into the log ratio of each image; also the probability that it is no junk, (rows,)."""
    if share is None:
        return log_ratio, jnp.ones_like(log_ratio)
    clean = jnp.log1p(-share) + log_ratio
    total = jnp.logaddexp(clean, jnp.log(share) + observation.junk_ratio(batch.images, variance))
    return total, jnp.exp(clean - total)
