"""From low to full resolution: every Fourier voxel of a covariance against a few directions known at low resolution.

Let W be maps that span the covariance of the lowest shells, scaled to unit variance, and x their slices. An image d
(the mean's taken off) has products h = 2 Re <d, x>/sigma^2 with F = 2 Re <x, x>/sigma^2, so that for coefficients z
of unit covariance E[d h^T] = (slices of C) F + x, the last term being the noise that d and h share. Least squares on
these second moments gives C, which is W at all resolutions: the columns of the covariance that W selects (Gilles &
Singer 2025, PNAS 122, select Fourier voxels in their place). No latent needs to be Gaussian.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.imaging import accumulate
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.slices import Cells
from inference.covariance import View, residuals
from inference.updates import signal_spectra
from inference.volume_step import certainty, volume_step

_ROUNDS = 5  # of the spectra, which settle by then
_STEPS = 8  # of conjugate gradients in each


class DirectionSums:
    """Both sides of the least-squares problem for C, added up over images in float64 on the host.

    Each image's equations are multiplied by (F + 1)^-1, which gives all of them about the same error.
    """

    def __init__(self, low: View, full: View, count: int) -> None:
        self.low, self.full, self.count = low, full, count
        self.pairs = np.array([(i, j) for i in range(count) for j in range(i, count)]).T
        self.total = accumulate.empty(full.lattice, 1, 2 * count + self.pairs.shape[1])

    def add(self, table: Array, noise: Array, batch: Batch) -> None:
        """Add some images; `table` is that of the mean map and of W."""
        cells, values = _equations(self.low, self.full, table, noise, batch)
        self.total = accumulate.add(self.full.lattice, self.total, cells, values)

    def maps(self, spectra: Array) -> tuple[Array, Array]:
        """C with spectra found by empirical Bayes: maps (count, N, N, N) and their prior variance (count, shells).

        Args:
            spectra: where to start them.
        """
        lattice, count = self.full.lattice, self.count
        columns = accumulate.table(self.total, 2 * count + self.pairs.shape[1])
        pairs = tuple((int(i), int(j)) for i, j in self.pairs.T)
        target, weights = columns[:, : 2 * count], columns[:, 2 * count :]
        ball, zero = Ball(lattice.size), jnp.zeros((count, *[lattice.size] * 3))
        found = zero
        for _ in range(_ROUNDS):
            found, _ = volume_step(lattice, zero, target, weights, spectra, _STEPS, pairs)
            precision, determined, _ = certainty(lattice, weights, spectra, pairs)
            spectra = signal_spectra(ball, found[None], precision[None], determined[None], jnp.zeros(ball.shells))
        return found, spectra


@partial(jax.jit, static_argnums=(0, 1))
def _equations(low: View, full: View, table: Array, noise: Array, batch: Batch) -> tuple[Cells, Array]:
    """What each pixel adds: back-projected right side (real, imaginary), then the left side's pairs."""
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    d, ctf, x = residuals(full, table, noise, batch)
    seen = jnp.asarray(np.isin(full.pixels, low.pixels), ctf.dtype)[:, None]
    x = x * seen
    h = 2 * (exact("bm,bml->bl", d.real, x.real) + exact("bm,bml->bl", d.imag, x.imag))
    gram = 2 * (exact("bml,bmn->bln", x.real, x.real) + exact("bml,bmn->bln", x.imag, x.imag))
    scaled = jnp.linalg.inv(gram + jnp.eye(gram.shape[-1]))
    design = exact("bij,bjk->bik", gram, scaled)
    product = d[..., None] * exact("bij,bj->bi", scaled, h)[:, None] - exact("bml,bln->bmn", x, scaled)
    weight = (2 * ctf * batch.weight[:, None])[..., None]
    right = weight * exact("bml,bnl->bmn", product, design.astype(product.dtype))
    i, j = np.triu_indices(design.shape[-1])
    left = weight * ctf[..., None] * exact("bil,bjl->bij", design, design)[:, None, i, j]
    cells = full.lattice.cells(batch.rotation, full.points, batch.stretch)
    return cells, jnp.concatenate([right.real, right.imag * cells.sign[..., None], left], axis=-1)
