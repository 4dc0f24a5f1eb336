"""Bootstrap principal component analysis of volumes in closed form (Penczek et al. 2006, J. Struct. Biol. 154).

There, maps are reconstructed from images drawn with replacement, and their covariance is analysed. To first order in
the numbers drawn that covariance needs no drawing: with V = B/(H + 1/tau^2) each image moves the map by
r_i = (B_i - H_i V)/(H + 1/tau^2), and the covariance over bootstrap samples is sum_i r_i r_i*. On average
it is Sigma(xi, xi') n(xi, xi')/(n(xi) n(xi')), n counting images whose slices hold a voxel, or both, and so it is no
estimate of Sigma: a baseline, whose directions are of use and whose eigenvalues mean nothing (see
`inference.covariance` for the consistent estimate).
"""

import dataclasses

import numpy as np
from jax import Array
from scipy.sparse.linalg import eigsh

from hetmodels.data.batch import Batch
from inference.covariance import ColumnSums, View


@dataclasses.dataclass(frozen=True, eq=False)
class BootstrapSums:
    """Sums for the covariance over bootstrap samples of the voxels of the lowest shells, float64 on the host.

    Attributes:
        sums: products of the images' back-projected residuals, noise taken off.
    """

    sums: ColumnSums

    @classmethod
    def of(cls, view: View, size: int) -> "BootstrapSums":
        """Nothing added up yet, for maps of a box."""
        return cls(ColumnSums(view, size))

    def add(self, table: Array, noise: Array, batch: Batch) -> None:
        """Add some images; `table` is that of the mean map."""
        self.sums.add(table, noise, batch)

    def covariance(self, power: np.ndarray, corrected: bool = True) -> np.ndarray:
        """Covariance over bootstrap samples, (2 voxels, 2 voxels) in `LowBand`'s coordinates.

        Args:
            power: prior variance of the map per shell, (shells,).
            corrected: take off what noise adds, which leaves the part of the motion.
        """
        own = np.tile(self.sums.hits, 2)
        product = self.sums.product if corrected else self.sums.product + np.diag(own)
        precision = own + 1 / np.maximum(np.tile(power[self.sums.band.shell], 2), 1e-30)
        return product / np.outer(precision, precision)

    def leading(self, power: np.ndarray, count: int) -> Array:
        """Maps along the directions of largest bootstrap variance, orthogonal, (count, N, N, N)."""
        start = np.random.default_rng(0).normal(size=len(self.sums.product))
        _, vectors = eigsh(self.covariance(power), count, which="LA", v0=start)
        return self.sums.band.maps(vectors.T[::-1])
