"""Maps given by the user, on the grid and in the grey scale of the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hetmodels.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from hetmodels.data.particles import Particles


def read_maps(
    paths: Sequence[Path], particles: "Particles", lowpass: float | None = None
) -> tuple["np.ndarray", float]:
    """The maps, (count, N, N, N), and the factor by which they were multiplied to have the power of the images' signal.

    Args:
        paths: MRC files.
        particles: the images.
        lowpass: resolution to which the maps are cut off [Å], or None.

    Raises:
        DataError: if a map cannot be read, or has another box or pixel size.
    """
    import numpy as np

    from hetmodels.analysis import fourier
    from hetmodels.data.maps import read_map
    from hetmodels.initial import first_spectra, grey_scale

    maps = []
    for path in paths:
        values, spacing, _ = read_map(path)
        size = fourier.check_map(values, str(path)).shape[0]
        if size != particles.size or (spacing > 0 and abs(spacing / particles.spacing - 1) > 0.01):
            raise DataError(
                f"{path}: the map has {size} voxels of {spacing:.4g} Å, the particles {particles.size} pixels of "
                f"{particles.spacing:.4g} Å; both must agree. Resample the map, or choose --box and --pixel of the fit "
                "to match."
            )
        if lowpass:
            values = fourier.filtered(values, fourier.lowpass_gain(size, particles.spacing, lowpass))
        maps.append(values)
    scale = grey_scale(np.stack(maps), first_spectra(particles)[1])
    return scale * np.stack(maps), scale
