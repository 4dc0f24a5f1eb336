"""One particle's latents with the shared values given, integrated exactly where the family's structure allows.

At a known pose the image of a linear family is sum_l b_l x_l, with x_l the shifted, CTF-filtered slice of component l.
Two statistics per image then say all: h_l = 2 Re <y, x_l> and G_lm = Re <x_l, x_m>, inner products over the
stored pixels weighted by 1/sigma^2, since log p(y | b) - log p(y | 0) = b.h - b.G b.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.protocol import Gaussian, Gridded, Shared, need_frame
from hetmodels.imaging.grids import phase_ramp
from hetmodels.imaging.slices import Cells, Lattice
from hetmodels.observation import Contrast, Observation, marginal_ratio, split_junk
from hetmodels.tree import pytree

_CONTRAST_NODES = 24

Assignment = Callable[[Array], Array]


@pytree
class Local:
    """Posterior of the latents of some particles.

    Attributes:
        mean: latent means, (rows, dims); dims is 0 where there is no continuous latent.
        covariance: (rows, dims, dims).
        responsibilities: posterior probability of each node of a gridded latent, (rows, nodes).
        contrast: posterior mean of the contrast, (rows,).
        outlier: posterior probability of junk, (rows,).
        rotation: mean rotation, (rows, 3, 3).
        shift: mean content shift [Å], (rows, 2).
        log_evidence: log p(y | shared) - log p(y | noise only), (rows,).
        log_evidence_se: its Monte-Carlo standard error, 0 where exact, (rows,).
    """

    mean: Array
    covariance: Array
    responsibilities: Array
    contrast: Array
    outlier: Array
    rotation: Array
    shift: Array
    log_evidence: Array
    log_evidence_se: Array


@pytree
class Design:
    """Posterior moments of the weights b of a linear family, contrast a included, and of its latents.

    Attributes:
        log_ratio: log p(y) - log p(y | noise only), without junk, (rows,).
        first: E[a b], (rows, components).
        second: E[a^2 b b^T], (rows, components, components).
        responsibilities: (rows, nodes).
        mean, covariance: of a Gaussian latent, (rows, dims) and (rows, dims, dims).
        contrast: E[a], (rows,).
    """

    log_ratio: Array
    first: Array
    second: Array
    responsibilities: Array
    mean: Array
    covariance: Array
    contrast: Array


def component_lattice(family: Any) -> Lattice:
    """The padded Fourier grid of a linear family's maps."""
    frame = need_frame(family)
    return Lattice(frame.size, frame.spacing, 2, getattr(family, "order", 1))


def centred_images(batch: Batch, observation: Observation) -> Array:
    """Images moved so that the particle is centred; the likelihood does not change, noise is white in phase."""
    points = observation.disc.grid(observation.spacing).points
    return batch.images * jnp.conj(phase_ramp(points, batch.shift))


def component_slices(lattice: Lattice, table: Array, batch: Batch, observation: Observation) -> tuple[Array, Cells]:
    """Slices of the components at the file's poses, before CTF: complex (rows, pixels, components)."""
    points = observation.disc.grid(observation.spacing).points
    cells = lattice.cells(batch.rotation, points, batch.stretch)
    return lattice.gather(table, cells), cells


def linear_statistics(images: Array, slices: Array, ctf: Array, variance: Array) -> tuple[Array, Array]:
    """h (rows, components) and G (rows, components, components) of each image.

    Args:
        images: centred images, complex (rows, pixels).
        slices: component slices, complex (rows, pixels, components).
        ctf: (rows, pixels).
        variance: (rows, pixels).
    """
    highest = jax.lax.Precision.HIGHEST
    weight = ctf / variance
    y = weight * images
    h = 2 * (
        jnp.einsum("bm,bml->bl", y.real, slices.real, precision=highest)
        + jnp.einsum("bm,bml->bl", y.imag, slices.imag, precision=highest)
    )
    w = (weight * ctf)[..., None]
    gram = jnp.einsum("bml,bmn->bln", w * slices.real, slices.real, precision=highest)
    return h, gram + jnp.einsum("bml,bmn->bln", w * slices.imag, slices.imag, precision=highest)


def posterior_of(joint: Array) -> Array:
    """Posterior probabilities from log prior plus log likelihood, (rows, nodes)."""
    return jax.nn.softmax(joint, axis=1)


def design_moments(
    family: Any, shared: Shared, h: Array, gram: Array, contrast: Contrast | None, assign: Assignment = posterior_of
) -> Design:
    """Integrate the latents of a linear family: none, enumerated nodes, or a Gaussian in closed form.

    Args:
        family: a linear family.
        shared: its shared values.
        h, gram: see `linear_statistics`.
        contrast: prior of the contrast.
        assign: node probabilities from log prior plus log likelihood (rows, nodes); an engine may soften them.
    """
    if isinstance(family, Gaussian):
        return _gaussian_moments(family.latent_covariance(shared), h, gram, contrast)
    if isinstance(family, Gridded):
        nodes, log_weights = family.grids(shared)
        design = jax.vmap(family.design)(nodes)
    else:
        design, log_weights = family.design(None)[None], jnp.zeros(1)
    linear = h @ design.T
    quadratic = jnp.einsum("nl,blm,nm->bn", design, gram, design, precision=jax.lax.Precision.HIGHEST)
    ratio, first, second = marginal_ratio(linear, quadratic, contrast)
    joint = ratio + log_weights
    total = jax.scipy.special.logsumexp(joint, axis=1)
    posterior = assign(joint)
    outer = design[:, :, None] * design[:, None, :]
    rows = len(h)
    return Design(
        total,
        (posterior * first) @ design,
        jnp.einsum("bn,nlm->blm", posterior * second, outer),
        posterior,
        jnp.zeros((rows, 0)),
        jnp.zeros((rows, 0, 0)),
        (posterior * first).sum(1),
    )


def _gaussian_moments(prior: Array, h: Array, gram: Array, contrast: Contrast | None) -> Design:
    """b = (1, z), z ~ N(0, prior): Woodbury's identity at each value of the contrast."""
    if contrast is None:
        a, log_a = jnp.ones((len(h), 1)), jnp.zeros((len(h), 1))
    else:
        a, log_a = _contrast_grid(h[:, 0], gram[:, 0, 0], contrast)
    inverse = jnp.linalg.inv(prior)
    precision = 2 * a[..., None, None] ** 2 * gram[:, None, 1:, 1:] + inverse
    slope = a[..., None] * h[:, None, 1:] - 2 * a[..., None] ** 2 * gram[:, None, 0, 1:]
    covariance = jnp.linalg.inv(precision)
    mean = jnp.einsum("bnij,bnj->bni", covariance, slope, precision=jax.lax.Precision.HIGHEST)
    log_ratio = a * h[:, :1] - a**2 * gram[:, :1, 0] + 0.5 * (mean * slope).sum(-1)
    log_ratio -= 0.5 * (jnp.linalg.slogdet(precision)[1] + jnp.linalg.slogdet(prior)[1])
    joint = log_ratio + log_a
    total = jax.scipy.special.logsumexp(joint, axis=1)
    weight = jnp.exp(joint - total[:, None])
    b = jnp.concatenate([jnp.ones_like(mean[..., :1]), mean], axis=-1)
    second = b[..., :, None] * b[..., None, :] + jnp.pad(covariance, ((0, 0), (0, 0), (1, 0), (1, 0)))
    centre = jnp.einsum("bn,bni->bi", weight, mean)
    spread = covariance + mean[..., :, None] * mean[..., None, :]
    return Design(
        total,
        jnp.einsum("bn,bni->bi", weight * a, b),
        jnp.einsum("bn,bnij->bij", weight * a**2, second),
        jnp.ones((len(h), 1)),
        centre,
        jnp.einsum("bn,bnij->bij", weight, spread) - centre[:, :, None] * centre[:, None, :],
        (weight * a).sum(1),
    )


def _contrast_grid(linear: Array, quadratic: Array, contrast: Contrast) -> tuple[Array, Array]:
    """Nodes over the contrast and log weights of prior times spacing, (rows, nodes): wide about its rough posterior."""
    prior = 1 / contrast.sd**2
    precision = prior + 2 * quadratic
    centre, width = (prior + linear) / precision, 1 / jnp.sqrt(precision)
    reach = jnp.minimum(8 * width, 0.5 * width + 6 * contrast.sd)
    unit = jnp.linspace(-1.0, 1.0, _CONTRAST_NODES)
    a = centre[:, None] + reach[:, None] * unit
    step = reach * (unit[1] - unit[0])
    log_prior = -0.5 * prior * (a - 1) ** 2 + 0.5 * jnp.log(prior / (2 * jnp.pi))
    return a, log_prior + jnp.log(step)[:, None]


def image_design(
    family: Any, shared: Shared, batch: Batch, observation: Observation, noise: Array
) -> tuple[Design, Array]:
    """Design moments of a batch at known poses, from the maps themselves; also the pixel variance."""
    lattice = component_lattice(family)
    table = lattice.table(family.components(shared))
    slices, _ = component_slices(lattice, table, batch, observation)
    variance = observation.pixel_variance(noise, batch.group)
    h, gram = linear_statistics(centred_images(batch, observation), slices, batch.ctf, variance)
    return design_moments(family, shared, h, gram, observation.contrast), variance


def collapsed_ratio(
    family: Any, shared: Shared, batch: Batch, observation: Observation, noise: Array, junk: Array | None
) -> Array:
    """log p(y | shared) - log p(y | noise only) with latents, contrast and junk integrated, (rows,)."""
    design, variance = image_design(family, shared, batch, observation, noise)
    return split_junk(design.log_ratio, observation, batch, variance, junk)[0]


def exact_local(
    family: Any, shared: Shared, batch: Batch, observation: Observation, noise: Array, junk: Array | None
) -> Local:
    """The posterior of a linear family's latents at known poses, in closed form."""
    design, variance = image_design(family, shared, batch, observation, noise)
    total, clean = split_junk(design.log_ratio, observation, batch, variance, junk)
    return Local(
        design.mean,
        design.covariance,
        design.responsibilities,
        design.contrast,
        1 - clean,
        batch.rotation,
        batch.shift,
        total,
        jnp.zeros_like(total),
    )
