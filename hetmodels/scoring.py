"""Scores of many poses at once: images against slices by real matrix products, the latents integrated at each pose.

A linear family's score at a pose needs two statistics (see `hetmodels.local`): the cross term of each component, for
all images and shifts against all rotations one product, and the Gram matrix of the components, a second product of
C^2/sigma^2 with products of slices, which no shift changes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.contrast import CONTRAST_NODES, contrast_range
from hetmodels.data.batch import Batch
from hetmodels.families.latent_mixture import LatentMixture
from hetmodels.families.protocol import Gaussian, Gridded, Shared, mixture_of, shown
from hetmodels.imaging.grids import phase_ramp
from hetmodels.imaging.poses import RotationGrid
from hetmodels.imaging.rotations import from_rotvec, super_fibonacci
from hetmodels.local import Pairs, component_lattice, mixing_pairs
from hetmodels.observation import Contrast, Observation, marginal_ratio
from hetmodels.tree import pytree, static

_SAMPLES = 64
_HEAT = 0.7  # power of what cells lack; measured, at 0.5 searches lose more than they say
_SPREAD = 1.1347241384015194 ** -np.arange(1.0, 6.0)  # multiples fill a cell of five dimensions evenly (Roberts 2018)
_HIGHEST = jax.lax.Precision.HIGHEST
_einsum = partial(jnp.einsum, precision=_HIGHEST)


@pytree
class Templates:
    """Maps as a search sees them.

    Attributes:
        family: a linear family.
        shared: its shared values.
        noise: variance relative to the reference spectrum, (groups, shells).
        tables: Fourier tables of the maps, copies of the maps one below the other, (copies * rows, 2 components).
        observation: how densities become images.
        pairs: pairs of components that mix.
    """

    family: Any
    shared: Any
    noise: Array
    tables: Array
    observation: Observation = static()
    pairs: Pairs = static()

    @staticmethod
    def of(family: Any, shared: Shared, observation: Observation, noise: Array) -> "Templates":
        """One copy of the family's own components."""
        table = component_lattice(family).table(shown(family, shared))
        return Templates(family, shared, noise, table, observation, mixing_pairs(family, shared))

    def points(self, limit: int) -> Array:
        """Frequencies of the pixels in a band [1/Å], (pixels, 2); they are the first of the disc."""
        return self.observation.disc.narrowed(limit).grid(self.observation.spacing).points


def image_side(
    templates: Templates, batch: Batch, shift: Array, excess: Array, limit: int
) -> tuple[Array, Array, Array]:
    """The images' part of the products.

    Args:
        templates: for noise and layout.
        batch: the images.
        shift: content shifts [Å], (rows, shifts, 2).
        excess: variance per shell to count as noise besides it, before the CTF, (shells,); see `mismatch`.
        limit: band.

    Returns:
        2 y C/sigma^2 moved back by each shift, real then imaginary parts, (rows, shifts, 2 pixels); C^2/sigma^2,
        (rows, pixels); and the temperature of the scores, (rows,). The pixels of a pose differ from the centre of its
        cell together, not each by itself, so that scores spread the more the cells lack; divided by the temperature
        they promise no more than a centre can know.
    """
    points = templates.points(limit).astype(batch.ctf.dtype)
    m = len(points)
    shell, ctf = templates.observation.disc.shell[:m], batch.ctf[:, :m]
    weight = ctf / (templates.noise[batch.group][:, shell] + ctf**2 * excess[shell])
    y = 2 * batch.images[:, None, :m] * weight[:, None]
    angle = (2 * np.pi) * _einsum("btc,mc->btm", shift.astype(ctf.dtype), points)
    c, s = jnp.cos(angle), jnp.sin(angle)
    temperature = 1 + lacking(templates, batch, excess, limit) ** _HEAT
    return jnp.concatenate([y.real * c - y.imag * s, y.real * s + y.imag * c], -1), weight * ctf, temperature


@partial(jax.jit, static_argnames="limit")
def lacking(templates: Templates, batch: Batch, excess: Array, limit: int) -> Array:
    """Nats by which the pose that made an image exceeds the centre of its cell on average, (rows,).

    Pixels count the less the more they exceed the noise; arguments as in `image_side`.
    """
    m = templates.observation.disc.narrowed(limit).pixels
    shell = templates.observation.disc.shell[:m]
    power = batch.ctf[:, :m] ** 2 * excess[shell]
    return (power / (templates.noise[batch.group][:, shell] + power)).sum(-1)


def slices_at(templates: Templates, rotation: Array, stretch: Array, copy: Array, limit: int) -> Array:
    """Slices of the components, complex (slices, pixels, components), one rotation, stretch and copy for each."""
    lattice = component_lattice(templates.family)
    cells = lattice.cells(rotation, templates.points(limit).astype(rotation.dtype), stretch)
    base = cells.base + (copy * lattice.rows)[:, None]
    return lattice.gather(templates.tables, type(cells)(base, cells.fraction, cells.sign, cells.inside))


@partial(jax.jit, static_argnames="limit")
def bank_slices(
    templates: Templates, grid: RotationGrid, code: Array, turn: Array, stretch: Array, copy: Array, limit: int
) -> Array:
    """Slices at cells of a grid common to all images: codes (cells,), turned by one rotation (1, 3, 3)."""
    count = len(code)
    stretch = jnp.broadcast_to(stretch, (count, 2, 2))
    return slices_at(templates, grid.rotation(code[None], turn)[0], stretch, jnp.broadcast_to(copy, (count,)), limit)


@partial(jax.jit, static_argnames=("step", "shift_step"))
def mismatch(templates: Templates, step: float, shift_step: float) -> Array:
    """Power by which slices differ from the one at the centre of their cell, per shell (shells,): mean over cells.

    While cells are only chosen, not yet weighed, this counts as noise, so that a sharp posterior on a coarse grid does
    not choose by what its cells cannot show.

    Args:
        templates: maps; the first copy is looked at.
        step: edge of a cell of rotations [rad].
        shift_step: edge of a cell of shifts [Å].
    """
    obs = templates.observation
    rotation = jnp.asarray(super_fibonacci(_SAMPLES), jnp.float32)
    inside = jnp.asarray(np.modf(np.arange(1, _SAMPLES + 1)[:, None] * _SPREAD)[0] - 0.5, jnp.float32)
    other = jnp.matmul(from_rotvec(inside[:, :3] * step), rotation, precision=_HIGHEST)
    points, zero = templates.points(obs.disc.limit), jnp.zeros(_SAMPLES, jnp.int32)
    eye = jnp.broadcast_to(jnp.eye(2), (_SAMPLES, 2, 2))
    centre, away = (slices_at(templates, r, eye, zero, obs.disc.limit) for r in (rotation, other))
    moved = away * phase_ramp(points, inside[:, 3:] * shift_step)[..., None]
    power = (jnp.abs(centre - moved) ** 2).mean(0)
    power = power.mean(-1) if not isinstance(templates.family, Gaussian) else power[:, 0]
    return obs.disc.shell_mean(power)


@jax.jit
def bank_side(templates: Templates, slices: list[Array]) -> tuple[Array, Array]:
    """The bank's part of the products.

    Args:
        templates: for the pairs of components.
        slices: pieces of the bank, complex (rotations, pixels, components).

    Returns:
        Slices, real then imaginary parts, (components * rotations, 2 pixels), and Re conj(x_l) x_m of the pairs,
        (pairs * rotations, pixels).
    """
    i, j = np.array(templates.pairs).T
    x = jnp.moveaxis(jnp.concatenate(slices), -1, 0)
    both = x.real[i] * x.real[j] + x.imag[i] * x.imag[j]
    return jnp.concatenate([x.real, x.imag], -1).reshape(-1, 2 * x.shape[-1]), both.reshape(-1, x.shape[-1])


def bank_scores(templates: Templates, left: Array, weight: Array, sides: tuple[Array, Array]) -> Array:
    """Log p(y | pose) - log p(y | noise only) of images against a common bank, (rows, shifts, rotations).

    Args:
        templates: family and layout.
        left: from `image_side`.
        weight: from `image_side`.
        sides: from `bank_side`.
    """
    (rows, shifts, width), count = left.shape, len(sides[1]) // len(templates.pairs)
    cross = jnp.dot(left.reshape(-1, width), sides[0].T, precision=_HIGHEST).reshape(rows, shifts, -1, count)
    gram = jnp.dot(weight, sides[1].T, precision=_HIGHEST).reshape(rows, -1, count)
    return latent_ratio(templates, jnp.moveaxis(cross, 2, 3), jnp.moveaxis(gram, 1, 2))


def own_scores(templates: Templates, left: Array, weight: Array, slices: Array, rotations: int) -> Array:
    """The same, each image against rotations of its own: slices (rows * rotations, pixels, components)."""
    x = jnp.moveaxis(slices, -1, 1).reshape(len(left), rotations, slices.shape[2], -1)
    right = jnp.concatenate([x.real, x.imag], -1)
    cross = _einsum("btm,brlm->btrl", left, right)
    i, j = np.array(templates.pairs).T
    both = x.real[:, :, i] * x.real[:, :, j] + x.imag[:, :, i] * x.imag[:, :, j]
    gram = _einsum("bm,brpm->brp", weight, both)
    return latent_ratio(templates, cross, gram)


def latent_ratio(templates: Templates, cross: Array, gram: Array) -> Array:
    """Integrate latents and contrast at every pose, as `hetmodels.local.design_moments` does at one.

    Args:
        templates: family, shared values and pairs.
        cross: h = 2 Re <y, x_l>, (rows, shifts, rotations, components).
        gram: Re <x_l, x_m> of the pairs, (rows, rotations, pairs).

    Returns:
        Log p(y | pose) - log p(y | noise only), (rows, shifts, rotations).
    """
    family, shared, pairs = templates.family, templates.shared, templates.pairs
    contrast = templates.observation.contrast
    if isinstance(family, Gaussian):
        full, mixture = _full(gram, pairs, cross.shape[-1]), mixture_of(family, shared)
        if mixture is None:
            return _gaussian_ratio(family.latent_covariance(shared), cross, full, contrast)
        return _mixture_ratio(mixture, cross, full, contrast)
    if isinstance(family, Gridded):
        nodes, log_weights = family.grids(shared)
        design = jax.vmap(family.design)(nodes)  # type: ignore[attr-defined]
    else:
        design, log_weights = family.design(None)[None], jnp.zeros(1)
    design = design.astype(cross.dtype)
    i, j = np.array(pairs).T
    both = design[:, i] * design[:, j] * np.where(i == j, 1.0, 2.0).astype(cross.dtype)
    linear = _einsum("...l,nl->...n", cross, design)
    quadratic = _einsum("brp,np->brn", gram, both)[:, None]
    ratio, _, _ = marginal_ratio(linear, quadratic, contrast)
    if len(design) == 1:
        return ratio[..., 0] + log_weights[0].astype(cross.dtype)
    return jax.nn.logsumexp(ratio + log_weights.astype(cross.dtype), axis=-1)


def _full(packed: Array, pairs: Pairs, count: int) -> Array:
    i, j = np.array(pairs).T
    full = jnp.zeros((*packed.shape[:-1], count, count), packed.dtype).at[..., i, j].set(packed)
    return full.at[..., j, i].set(packed)


def _mixture_ratio(mixture: LatentMixture, cross: Array, gram: Array, contrast: Contrast | None) -> Array:
    """Weights b = (1, z), z of a mixture of Gaussians: each about its own mean as in `_gaussian_ratio`."""

    def add(total: Array, one: tuple[Array, Array, Array]) -> tuple[Array, None]:
        weight, mean, covariance = one
        shift = jnp.eye(gram.shape[-1], dtype=cross.dtype).at[1:, 0].set(mean)
        own = _einsum("li,...lm,mj->...ij", shift, gram, shift)
        found = _gaussian_ratio(covariance, _einsum("...l,lm->...m", cross, shift), own, contrast)
        return jnp.logaddexp(total, found + jnp.log(jnp.maximum(weight, 1e-30))), None

    parts = (v.astype(cross.dtype) for v in (mixture.weights, mixture.means, mixture.covariances))
    start = jnp.full(cross.shape[:-1], -jnp.inf, cross.dtype)
    return jax.lax.scan(add, start, tuple(parts))[0]


def _gaussian_ratio(prior: Array, cross: Array, gram: Array, contrast: Contrast | None) -> Array:
    """Weights b = (1, z), z ~ N(0, prior): one eigensystem per rotation serves all shifts and contrasts."""
    root = jnp.linalg.cholesky(prior.astype(cross.dtype))
    values, vectors = jnp.linalg.eigh(_einsum("ba,...bc,cd->...ad", root, gram[..., 1:, 1:], root))
    turn = _einsum("ab,...bc->...ac", root, vectors)
    slope = _einsum("btra,brac->btrc", cross[..., 1:], turn)
    mean = _einsum("bra,brac->brc", gram[..., 0, 1:], turn)[:, None]
    values, alone = jnp.maximum(values, 0)[:, None], gram[..., 0, 0][:, None]

    def given(a: Array) -> Array:
        wide = 2 * a[..., None] ** 2 * values + 1
        moved = a[..., None] * slope - 2 * a[..., None] ** 2 * mean
        return a * cross[..., 0] - a**2 * alone + 0.5 * (moved**2 / wide - jnp.log(wide)).sum(-1)

    if contrast is None:
        return given(jnp.ones((1, 1, 1), cross.dtype))
    seen = mean / (values + 0.5 / (1 + contrast.sd**2))  # the part of the mean map that latents can take over
    centre, reach = contrast_range(cross[..., 0] - (seen * slope).sum(-1), alone - (seen * mean).sum(-1), contrast)
    unit = jnp.linspace(-1.0, 1.0, CONTRAST_NODES, dtype=cross.dtype)
    log_step = jnp.log(reach * (unit[1] - unit[0])) - 0.5 * np.log(2 * np.pi * contrast.sd**2)

    def add(total: Array, u: Array) -> tuple[Array, None]:
        a = centre + reach * u
        return jnp.logaddexp(total, given(a) - 0.5 * ((a - 1) / contrast.sd) ** 2 + log_step), None

    start = jnp.full(cross.shape[:-1], -jnp.inf, cross.dtype)
    return jax.lax.scan(add, start, unit)[0]
