"""One particle's latents with the shared values given, integrated exactly where the family's structure allows.

At a known pose the image of a linear family is sum_l b_l x_l, with x_l the shifted, CTF-filtered slice of component l.
Two statistics per image then say all: h_l = 2 Re <y, x_l> and G_lm = Re <x_l, x_m>, inner products over the
stored pixels weighted by 1/sigma^2, since log p(y | b) - log p(y | 0) = b.h - b.G b. They are kept per shell, so that
the noise spectrum can be updated from the same numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.contrast import contrast_grid
from hetmodels.data.batch import Batch
from hetmodels.families.latent_mixture import LatentMixture
from hetmodels.families.protocol import Gaussian, Gridded, Moving, Shared, mixture_of, need_frame, shown
from hetmodels.imaging.grids import Disc, phase_ramp
from hetmodels.imaging.slices import Cells, Lattice
from hetmodels.observation import Contrast, Observation, marginal_ratio, split_junk
from hetmodels.tree import pytree, static

Assignment = Callable[[Array], Array]


@pytree
class Local:
    """Posterior of the latents of some particles.

    Attributes:
        mean: latent means, (rows, dims); dims is 0 where there is no continuous latent.
        covariance: (rows, dims, dims).
        responsibilities: posterior probability of each node of a gridded latent, or of each Gaussian that a latent may
            come from, (rows, nodes).
        contrast: posterior mean of the contrast, (rows,).
        outlier: posterior probability of junk, (rows,).
        rotation: mean rotation, or the likeliest of a search, (rows, 3, 3).
        shift: mean content shift [Å], or the likeliest, (rows, 2).
        log_evidence: log p(y | shared) - log p(y | noise only), (rows,).
        log_evidence_se: its Monte-Carlo standard error, 0 where exact, (rows,).
        rotation_top: the likeliest rotations of a search, (rows, K, 3, 3); the one above otherwise, K = 1.
        shift_top: their content shifts [Å], (rows, K, 2).
        weight_top: their posterior mass, (rows, K).
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
    rotation_top: Array
    shift_top: Array
    weight_top: Array


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
        each: of a mixture of Gaussians, E[(1, z) (1, z)^T] of each times its responsibility, (rows, nodes, 1 + dims,
            1 + dims); else None.
    """

    log_ratio: Array
    first: Array
    second: Array
    responsibilities: Array
    mean: Array
    covariance: Array
    contrast: Array
    each: Array | None = None


def component_lattice(family: Any) -> Lattice:
    """The padded Fourier grid of a linear family's maps."""
    frame = need_frame(family)
    return Lattice(frame.size, frame.spacing, 2, getattr(family, "order", 1))


def centred_images(batch: Batch, observation: Observation) -> Array:
    """Images moved so that the particle is centred; the likelihood does not change, noise is white in phase."""
    points = observation.disc.grid(observation.spacing).points.astype(batch.shift.dtype)
    return batch.images * jnp.conj(phase_ramp(points, batch.shift))


def component_slices(lattice: Lattice, table: Array, batch: Batch, observation: Observation) -> tuple[Array, Cells]:
    """Slices of the components at the file's poses, before CTF: complex (rows, pixels, components)."""
    points = observation.disc.grid(observation.spacing).points.astype(batch.rotation.dtype)
    cells = lattice.cells(batch.rotation, points, batch.stretch)
    return lattice.gather(table, cells), cells


Pairs = tuple[tuple[int, int], ...]


def mixing_pairs(family: Any, shared: Shared) -> Pairs:
    """Pairs (l <= m) of components whose weights meet at a Fourier voxel: both in one particle, at one placement.

    Each with itself only where nodes are exclusive or the components move apart.
    """
    count = family.components(shared).shape[0]
    if isinstance(family, Moving):
        return tuple((i, i) for i in range(count))
    every = tuple((i, j) for i in range(count) for j in range(i, count))
    if isinstance(family, Gaussian) or not isinstance(family, Gridded):
        return every
    with jax.ensure_compile_time_eval():
        design = jax.vmap(family.design)(family.grids(shared)[0])  # type: ignore[attr-defined]
    if isinstance(design, jax.core.Tracer):
        return every
    together = np.einsum("nl,nm->lm", np.abs(design), np.abs(design))
    return tuple((i, j) for i, j in every if together[i, j] > 0)


@pytree
class ShellStatistics:
    """The statistics of some images shell by shell, before division by the noise variance.

    Attributes:
        power: |y|^2, (rows, shells).
        cross: 2 Re <y, x_l>, (rows, components, shells).
        square: Re <x_l, x_m>, (rows, pairs, shells).
        pairs: which pairs of components.
    """

    power: Array
    cross: Array
    square: Array
    pairs: Pairs = static()

    def weighted(self, variance: Array) -> tuple[Array, Array]:
        """h (rows, components) and G (rows, components, components).

        Args:
            variance: of each shell, (rows, shells).
        """
        weight = jnp.where(variance > 0, 1 / variance, 0)[:, None, :]
        return (self.cross * weight).sum(-1), self._full((self.square * weight).sum(-1))

    def _full(self, packed: Array) -> Array:
        i, j = np.array(self.pairs).T
        count = self.cross.shape[1]
        full = jnp.zeros((len(packed), count, count), packed.dtype).at[:, i, j].set(packed)
        return full.at[:, j, i].set(packed)

    def expected_power(self, first: Array, second: Array) -> Array:
        """E|y - a sum_l b_l x_l|^2 per shell, (rows, shells), from E[a b] and E[a^2 b b^T]."""
        i, j = np.array(self.pairs).T
        both = second[:, i, j] * np.where(i == j, 1, 2)
        return self.power - (first[..., None] * self.cross).sum(1) + (both[..., None] * self.square).sum(1)


def shell_statistics(images: Array, slices: Array, ctf: Array, disc: Disc, pairs: Pairs) -> ShellStatistics:
    """Inner products of centred images and component slices per shell.

    Args:
        images: centred images, complex (rows, pixels).
        slices: component slices before CTF, complex (rows, pixels, components).
        ctf: (rows, pixels).
        disc: the pixels.
        pairs: pairs of components to multiply.
    """
    x = ctf[:, None, :] * jnp.moveaxis(slices, -1, 1)
    real, imaginary = x.real, x.imag
    i, j = np.array(pairs).T
    rows = [
        (images.real**2 + images.imag**2)[:, None, :],
        2 * (images.real[:, None, :] * real + images.imag[:, None, :] * imaginary),
        real[:, i] * real[:, j] + imaginary[:, i] * imaginary[:, j],
    ]
    member = jnp.asarray(np.eye(disc.shells, dtype=np.float32)[disc.shell], ctf.dtype)
    total = jnp.einsum("bqm,ms->bqs", jnp.concatenate(rows, axis=1), member, precision=jax.lax.Precision.HIGHEST)
    count = x.shape[1]
    return ShellStatistics(total[:, 0], total[:, 1 : 1 + count], total[:, 1 + count :], pairs)


def posterior_of(joint: Array) -> Array:
    """Posterior probabilities from log prior plus log likelihood, (rows, nodes)."""
    return jax.nn.softmax(joint, axis=1)


def design_moments(
    family: Any, shared: Shared, h: Array, gram: Array, contrast: Contrast | None, assign: Assignment = posterior_of
) -> Design:
    """Integrate the latents of a linear family: none, enumerated nodes, or Gaussians in closed form.

    Args:
        family: a linear family.
        shared: its shared values.
        h, gram: see `linear_statistics`.
        contrast: prior of the contrast.
        assign: node probabilities from log prior plus log likelihood (rows, nodes); an engine may soften them.
    """
    if isinstance(family, Gaussian):
        mixture = mixture_of(family, shared)
        if mixture is not None:
            return _mixture_moments(mixture, h, gram, contrast, assign)
        return _gaussian_moments(family.latent_covariance(shared), h, gram, contrast)
    if isinstance(family, Gridded):
        nodes, log_weights = family.grids(shared)
        design = jax.vmap(family.design)(nodes)  # type: ignore[attr-defined]
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
    inverse = jnp.linalg.inv(prior)
    if contrast is None:
        a, log_a = jnp.ones((len(h), 1)), jnp.zeros((len(h), 1))
    else:
        a, log_a = contrast_grid(*_without_latents(inverse, h, gram, contrast), contrast)
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


def about_mean(mean: Array, h: Array, gram: Array) -> tuple[Array, Array, Array]:
    """The statistics of an image for z - mean in place of z.

    Args:
        mean: (dims,), or one for each row, (rows, dims).
        h, gram: (rows, components) and (rows, components, components).

    Returns:
        T with (1, z) = T (1, z - mean), (rows, components, components); T^T h and T^T G T.
    """
    shift = jnp.zeros_like(gram) + jnp.eye(gram.shape[-1], dtype=gram.dtype)
    shift = shift.at[:, 1:, 0].set(mean)
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return shift, exact("blm,bl->bm", shift, h), exact("bli,blm,bmj->bij", shift, gram, shift)


def _mixture_moments(
    mixture: LatentMixture, h: Array, gram: Array, contrast: Contrast | None, assign: Assignment
) -> Design:
    """b = (1, z), z of a mixture of Gaussians: each as if it were alone, about its own mean, then Bayes' rule."""
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def alone(mean: Array, covariance: Array) -> tuple[Array, ...]:
        shift, own_h, own_gram = about_mean(mean, h, gram)
        found = _gaussian_moments(covariance, own_h, own_gram, contrast)
        first = exact("blm,bm->bl", shift, found.first)
        second = exact("bli,bij,bmj->blm", shift, found.second, shift)
        return found.log_ratio, first, second, found.mean + mean, found.covariance, found.contrast

    each = jax.vmap(alone, out_axes=1)(mixture.means, mixture.covariances)
    ratio, first, second, means, covariances, scale = each
    joint = ratio + jnp.log(jnp.maximum(mixture.weights, 1e-30))
    share = assign(joint)
    mean = exact("bk,bki->bi", share, means)
    apart, point = means - mean[:, None], jnp.concatenate([jnp.ones_like(means[..., :1]), means], axis=-1)
    own = point[..., :, None] * point[..., None, :]
    return Design(
        jax.scipy.special.logsumexp(joint, axis=1),
        exact("bk,bkl->bl", share, first),
        exact("bk,bklm->blm", share, second),
        share,
        mean,
        exact("bk,bkij->bij", share, covariances + apart[..., :, None] * apart[..., None, :]),
        (share * scale).sum(1),
        share[..., None, None] * own.at[..., 1:, 1:].add(covariances),
    )


def _without_latents(inverse: Array, h: Array, gram: Array, contrast: Contrast) -> tuple[Array, Array]:
    """Coefficients of a and -a^2 in log p(y | a), roughly: a z taken as normal with the variance it has on average."""
    spread = jnp.linalg.inv(2 * gram[:, 1:, 1:] + inverse / (1 + contrast.sd**2))
    seen = jnp.einsum("bi,bij->bj", gram[:, 0, 1:], spread, precision=jax.lax.Precision.HIGHEST)
    linear = h[:, 0] - 2 * (seen * h[:, 1:]).sum(1)
    return linear, gram[:, 0, 0] - 2 * (seen * gram[:, 0, 1:]).sum(1)


def image_design(
    family: Any, shared: Shared, batch: Batch, observation: Observation, noise: Array
) -> tuple[Design, Array]:
    """Design moments of a batch at known poses, from the maps themselves; also the pixel variance."""
    h, gram = linear_statistics(family, shared, batch, observation, noise)
    return design_moments(family, shared, h, gram, observation.contrast), observation.pixel_variance(noise, batch.group)


def linear_statistics(
    family: Any, shared: Shared, batch: Batch, observation: Observation, noise: Array
) -> tuple[Array, Array]:
    """h (rows, components) and G (rows, components, components) of a batch at its poses, from the maps themselves."""
    lattice = component_lattice(family)
    table = lattice.table(shown(family, shared))
    slices, _ = component_slices(lattice, table, batch, observation)
    images = centred_images(batch, observation)
    found = shell_statistics(images, slices, batch.ctf, observation.disc, mixing_pairs(family, shared))
    return found.weighted(noise[batch.group])


def collapsed_ratio(
    family: Any, shared: Shared, batch: Batch, observation: Observation, noise: Array, junk: Array | None
) -> Array:
    """log p(y | shared) - log p(y | noise only) with latents, contrast and junk integrated, (rows,)."""
    if isinstance(family, Moving):
        from hetmodels.moving import moving_ratio  # which needs what stands above

        return moving_ratio(family, shared, batch, observation, noise, junk)
    design, variance = image_design(family, shared, batch, observation, noise)
    return split_junk(design.log_ratio, observation, batch, variance, junk)[0]


def exact_local(
    family: Any, shared: Shared, batch: Batch, observation: Observation, noise: Array, junk: Array | None
) -> Local:
    """The posterior of a linear family's latents at known poses, in closed form."""
    if isinstance(family, Moving):
        from hetmodels.moving import moving_local

        return moving_local(family, shared, batch, observation, noise, junk)
    design, variance = image_design(family, shared, batch, observation, noise)
    total, clean = split_junk(design.log_ratio, observation, batch, variance, junk)
    found = design.mean, design.covariance, design.responsibilities, design.contrast
    return at_poses_of(batch, found, total, clean)


def at_poses_of(batch: Batch, found: tuple[Array, Array, Array, Array], total: Array, clean: Array) -> Local:
    """The posterior of latents at the batch's own poses.

    Args:
        batch: the particles.
        found: mean, covariance, responsibilities and contrast, see `Local`.
        total: log p(y | shared) - log p(y | noise only), exact, (rows,).
        clean: probability that the image is no junk, (rows,).
    """
    return Local(
        *found,
        1 - clean,
        batch.rotation,
        batch.shift,
        total,
        jnp.zeros_like(total),
        batch.rotation[:, None],
        batch.shift[:, None],
        jnp.ones_like(total)[:, None],
    )
