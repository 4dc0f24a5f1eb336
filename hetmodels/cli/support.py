"""The mask of a subspace's components: one that the user gives, or one made from the data before the fit."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetmodels.run_directory import RunDirectory

if TYPE_CHECKING:
    import numpy as np

_log = logging.getLogger("hetmodels.fit")
NONE = "none"
_LOWPASS = 30.0  # of the maps the mask is made from [Å]
_EXTEND, _EDGE = 20.0, 10.0  # how far it reaches beyond them, and its soft edge [Å]


def with_mask(family: Any, path: Path | None) -> Any:
    """The family with the mask file of `--mask`, where it takes one; `none` is no mask.

    Args:
        family: as set.
        path: of the option.
    """
    if path is None or not hasattr(family, "mask"):
        return family
    return dataclasses.replace(family, mask=str(path))


def masked_by_data(
    family: Any, engine: Any, particles: Any, options: dict[str, Any], folder: RunDirectory
) -> tuple[Any, dict[str, Any]]:
    """Family and options of a fit whose components are masked by where the data show density or its variance.

    The mask is made once, from the mean map and the components that the moments give, and kept as volumes/mask.mrc.
    What the moments gave is where the engine starts. A family that has a mask, takes none, or that the moments cannot
    start is returned as it is.

    Args:
        family: as set.
        engine: how to infer.
        particles: the data.
        options: arguments of `inference.fit` beyond these three.
        folder: the run.
    """
    from hetmodels.data.maps import read_map, write_map
    from inference import EM

    if getattr(family, "mask", None) == NONE:
        return dataclasses.replace(family, mask=None), options
    free = hasattr(family, "mask") and family.mask is None and family.region is None
    if not free or type(engine) is not EM or type(options["pose"]).__name__ != "Known" or options["start"] is not None:
        return family, options
    if folder.mask.is_file():  # a run that goes on
        return dataclasses.replace(family, region=read_map(folder.mask).values), options
    start = _moments(family, engine, particles, options)
    region = variance_mask(start, particles.spacing)
    if region is None:
        _log.warning("no mask could be made of the mean map: the components are not masked. --mask gives one.")
        return family, options | {"start": start}
    folder.volumes.mkdir(exist_ok=True)
    write_map(folder.mask, region, particles.spacing)
    _log.info("components are masked: %.0f%% of the box, volumes/mask.mrc (--mask none: no mask)", 100 * region.mean())
    start = start | {"components": 0 * start["components"]}  # they are found anew inside the mask
    return dataclasses.replace(family, region=region), options | {"start": start}


def _moments(family: Any, engine: Any, particles: Any, options: dict[str, Any]) -> dict[str, Any]:
    from hetmodels.observation import Radial
    from inference.fitting import make_problem
    from inference.subspace_start import moment_start

    rest = {name: value for name, value in options.items() if name != "key"}
    problem: Any = make_problem(family, particles, **({"noise": Radial()} | rest))
    return moment_start(options["key"], engine, problem)


def variance_mask(shared: dict[str, Any], spacing: float) -> "np.ndarray | None":
    """A soft mask of where the mean map or the variance of the maps stands out at low resolution, (N, N, N).

    None if nothing does.

    Args:
        shared: of a subspace: `map` (N, N, N) and `components` (dims, N, N, N).
        spacing: voxel size [Å].
    """
    import numpy as np

    from hetmodels.analysis import masks
    from hetmodels.errors import DataError

    found = []
    variance = (np.asarray(shared["components"], float) ** 2).sum(0)
    for values in (np.asarray(shared["map"]), variance.astype(np.float32)):
        try:
            found.append(masks.from_map(values, spacing, lowpass=_LOWPASS, extend=_EXTEND, edge=_EDGE))
        except DataError:
            continue
    return np.maximum.reduce(found) if found else None
