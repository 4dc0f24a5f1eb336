"""M-step updates of everything but the maps: correlation of half maps, signal and noise spectra, share of junk."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

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
def signal_spectra(ball: Ball, maps: Array, precision: Array, spectra: Array, fsc: Array) -> Array:
    """Signal spectra: FSC/(1-FSC) over the data's precision, or empirical Bayes.

    Empirical Bayes in MacKay's form: power over the number of well-determined parameters, precision/(precision +
    1/tau^2) summed. Its fixed point is that of mean |V^|^2 plus posterior variance, reached in far fewer passes.
    """
    if len(maps) == 2 and maps.shape[1] == 1:
        clipped = jnp.clip(fsc, 1e-3, 0.999)
        data = ball.shell_sum(precision.mean((0, 1))) / jnp.maximum(ball.degrees, 1)
        return (clipped / (1 - clipped) / jnp.maximum(data, 1e-20))[None]
    determined = precision / (precision + 1 / jnp.maximum(spectra, 1e-30)[:, ball.shell])
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
def noise_spectra(ball: Ball, sums: Sums, precision: Array, spectra: Array, before: Array) -> Array:
    """Expected residual power per pixel, (groups, shells); the maps' own degrees of freedom do not count.

    Args:
        ball: coordinates of the maps.
        sums: what the pass added up.
        precision: what the data say of each Fourier voxel, (copies, components, N, N, N//2+1).
        spectra: prior variance of the maps, (components, shells).
        before: the noise of the pass, kept where there are no pixels.
    """
    residual, count = jnp.asarray(sums.residual), jnp.asarray(sums.count)
    prior = 1 / jnp.maximum(spectra, 1e-30)[:, ball.shell]
    used = 0.5 * ball.shell_sum(precision / (precision + prior)).sum((0, 1))
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
