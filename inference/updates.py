"""M-step updates of everything but the maps: correlation of half maps, signal and noise spectra, share of junk."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import linear_sum_assignment

from hetmodels.imaging.ball import Ball
from hetmodels.observation import Observation
from inference.expectation import Sums


@partial(jax.jit, static_argnums=0)
def correlation(ball: Ball, maps: Array, precision: Array, spectra: Array) -> Array:
    """FSC of the half maps; without halves the one expected of them, SSNR/(SSNR + 2), first component."""
    if len(maps) == 2:
        a, b = ball.transform(maps[:, 0])
        cross = ball.shell_sum((jnp.conj(a) * b).real)
        norm = jnp.sqrt(ball.shell_sum(jnp.abs(a) ** 2) * ball.shell_sum(jnp.abs(b) ** 2))
        return cross / jnp.maximum(norm, 1e-30)
    ssnr = spectra[0] * ball.shell_sum(precision[0].mean(0)) / jnp.maximum(ball.degrees, 1)
    return ssnr / (ssnr + 2)


@partial(jax.jit, static_argnums=0)
def signal_spectra(ball: Ball, maps: Array, precision: Array, determined: Array, fsc: Array) -> Array:
    """Signal spectra: FSC/(1-FSC) over the data's precision, or empirical Bayes.

    Empirical Bayes in MacKay's form: power over the number of well-determined parameters. Its fixed point is that of
    mean |V^|^2 plus posterior variance, reached in far fewer passes. Components that are seen together (a common map
    and differences from it) are determined together: taken one by one they would look better known than they are, and
    their spectra would shrink.
    """
    if len(maps) == 2 and maps.shape[1] == 1:
        clipped = jnp.clip(fsc, 1e-3, 0.999)
        data = ball.shell_sum(precision.mean((0, 1))) / jnp.maximum(ball.degrees, 1)
        return (clipped / (1 - clipped) / jnp.maximum(data, 1e-20))[None]
    power = ball.shell_sum(jnp.abs(ball.transform(maps)) ** 2)
    return jnp.maximum(power / jnp.maximum(ball.shell_sum(determined), 1e-3), 1e-12).mean(0)


@partial(jax.jit, static_argnums=0)
def regularised(ball: Ball, maps: Array, precision: Array, before: Array, after: Array) -> Array:
    """Maps moved to where a new spectrum pulls them, shell by shell: (h + 1/before) / (h + 1/after).

    Otherwise the maps would be judged for a pass by a prior they were not made with.
    """
    data = ball.shell_sum(precision) / jnp.maximum(ball.degrees, 1)
    gain = (data + 1 / jnp.maximum(before, 1e-30)) / (data + 1 / jnp.maximum(after, 1e-30))
    return jax.vmap(jax.vmap(ball.filter))(maps, jnp.minimum(gain, 2.0))


@partial(jax.jit, static_argnums=0)
def noise_spectra(ball: Ball, sums: Sums, determined: Array, before: Array) -> Array:
    """Expected residual power per pixel, (groups, shells); the maps' own degrees of freedom do not count.

    Args:
        ball: coordinates of the maps.
        sums: what the pass added up.
        determined: share of each Fourier voxel's posterior that is the data's, (copies, components, N, N, N//2+1).
        before: the noise of the pass, kept where there are no pixels.
    """
    residual, count = jnp.asarray(sums.residual), jnp.asarray(sums.count)
    used = 0.5 * ball.shell_sum(determined).sum((0, 1))
    share = count / jnp.maximum(count.sum(0), 1)
    free = jnp.maximum(count - share * used, 0.5 * count)
    fresh = residual / jnp.maximum(free, 1)
    return jnp.where(count > 0, jnp.maximum(fresh, 1e-4), before)


def junk_share(sums: Sums, obs: Observation) -> Array:
    """Mode of the share of junk under its Beta prior."""
    prior = obs.outliers
    assert prior is not None
    top = sums.junk + prior.alpha - 1
    share = (top + 1e-3) / (sums.particles + prior.alpha + prior.beta - 2 + 2e-3)
    return jnp.asarray(np.clip(share, 1e-4, 0.5), jnp.float32)


def expanded(maps: Array, spectra: Array, latent: np.ndarray, masks: Array | None = None) -> tuple[Array, Array]:
    """Maps that take over the mean and the covariance found of the latents (PX-EM; Liu 1998, Biometrika 85).

    The latents' prior N(0, I) is freed to N(m, L L^T) for the pass and fixed again: V_0 + sum_j m_j V_j is the mean
    then, and the components V L. Their spectra follow.

    Args:
        maps: the mean and the components, (copies, 1 + dims, N, N, N).
        spectra: their prior variances, (1 + dims, shells).
        latent: sum over particles of E[(1, z) (1, z)^T], (1 + dims, 1 + dims).
        masks: of the maps, 1 for the mean and one for all components, (1 + dims, N, N, N); none if None.
    """
    moments = latent / latent[0, 0]
    mean = moments[0, 1:]
    root = np.linalg.cholesky(moments[1:, 1:] - np.outer(mean, mean) + 1e-9 * np.eye(len(mean)))
    change = np.eye(len(latent))
    change[1:, 0], change[1:, 1:] = mean, root
    own = np.concatenate([np.asarray(spectra[:1]), (root**2).T @ np.asarray(spectra[1:])])
    new = jnp.einsum("lm,clzyx->cmzyx", jnp.asarray(change, jnp.float32), maps)
    if masks is not None:  # the mean takes over what is seen of the components
        shift = jnp.tensordot(jnp.asarray(mean, jnp.float32), maps[:, 1:] * masks[1:], (0, 1))
        ball = Ball(maps.shape[-1])
        new = new.at[:, 0].set(maps[:, 0] + ball.filter(shift, jnp.ones(ball.shells)))
    return new, jnp.asarray(own, jnp.float32)


def matched(maps: Array, nodes: int) -> np.ndarray:
    """Order of the second half set's components in which its classes are those of the first, by correlation.

    Half sets that begin at random number their classes at random: joined as they are, they would mix.

    Args:
        maps: of both half sets, (2, components, N, N, N); the last `nodes` components are the classes.
        nodes: number of classes.
    """
    flat = np.asarray(maps[:, maps.shape[1] - nodes :], np.float64).reshape(2, nodes, -1)
    flat = flat - flat.mean(1, keepdims=True)  # what all classes share says nothing
    flat /= np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-30)
    fixed = maps.shape[1] - nodes
    return np.concatenate([np.arange(fixed), fixed + linear_sum_assignment(-flat[0] @ flat[1].T)[1]])
