"""A posterior as groups of named arrays (an xarray DataTree), in memory and in one netCDF file."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import jax
import numpy as np

from hetmodels import recipe
from hetmodels.errors import DataError
from hetmodels.run_directory import replacing, to_json

if TYPE_CHECKING:
    import xarray as xr

    from hetmodels.posterior import Posterior

FORMAT, VERSION = "hetmodels posterior", 1
SAMPLED = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive")  # arrays (chains, draws, …)
GIVEN = ("log_likelihood", "posterior_predictive", "observed_data", "constant_data")  # `extra` holds "group/name"
PARTICLE, TRAINING, HELD_OUT = "particle", "training_particle", "held_out_particle"
CHECKED = "checked_particle"  # those with posterior predictive replicates
FROM_ONE = ("class", "latent", "latent_other", "group", "half")
_FAMILY_ARRAYS = "family_arrays"
_CURE = "Install the version that wrote the file, or give the family: Posterior.load(path, family=...)."


class Axes:
    """Names and coordinates of the axes of a posterior's arrays.

    Classes, components, latent axes, groups and halves count from 1, particles and nodes from 0; z, y, x are in Å
    about the box centre. An axis whose meaning is not known is called after its variable.
    """

    def __init__(self, posterior: "Posterior") -> None:
        family, local = posterior.family, posterior.local
        shared = posterior.first() if family is not None else {}
        self.frame = getattr(family, "frame", None)
        self.latents = posterior.latent_names()
        self.node, self.nodes = "node", 0
        if hasattr(family, "grids"):
            nodes, log_weights = jax.eval_shape(family.grids, shared)
            self.node, self.nodes = ("class" if nodes.dtype.kind in "iu" else "node"), log_weights.shape[0]
        self.components = jax.eval_shape(family.components, shared).shape[0] if hasattr(family, "components") else 0
        self.component = "class" if self.node == "class" and self.nodes == self.components else "component"
        self.mean_first = hasattr(family, "latent_covariance")
        split = local.get("held_out", posterior.extra.get("constant_data/held_out"))
        rows = np.arange(len(next(iter(local.values()), () if split is None else split)))
        held = np.zeros(len(rows), bool) if split is None else np.asarray(split).astype(bool)
        checked = np.asarray(posterior.extra.get("constant_data/checked", np.empty(0, int)))
        self.rows = {PARTICLE: rows, TRAINING: rows[~held], HELD_OUT: rows[held], CHECKED: checked}

    def names(self, group: str, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Names of the axes of a variable, chain and draw included."""
        if group == "local":
            return (PARTICLE, *_filled(name, self._of_particle(name), len(shape) - 1))
        lead = ("chain", "draw") if group in SAMPLED else ()
        return (*lead, *self._rest(group, name, shape[len(lead) :]))

    def _of_particle(self, name: str) -> tuple[str, ...]:
        known = {
            "mean": ("latent",),
            "covariance": ("latent", "latent_other"),
            "responsibilities": (self.node,),
            "rotation": ("row", "column"),
            "shift": ("axis",),
        }
        return known.get(name, ())

    def _rest(self, group: str, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        count = len(shape)
        if self.frame is not None and shape[-3:] == (self.frame.size,) * 3:
            return (*_filled(name, self._of_maps(shape[:-3]), count - 3), "z", "y", "x")
        if self.frame is not None and self._is_spectrum(name) and shape[-1:] == (len(self.frame.power),):
            return (*_filled(name, self._of_maps(shape[:-1]), count - 1), "shell")
        if name == "noise" and count == 2:
            return ("group", "shell")
        if name in ("shell_power", "checked") and shape[:1] == self.rows[CHECKED].shape:
            return (CHECKED, "shell")[:count]
        particles = self._particles(group, name)
        if particles in self.rows and count and shape[0] == len(self.rows[particles]):
            return (particles, *_filled(name, self._of_particle(name), count - 1))
        if group == "posterior" and self.nodes and shape == (self.nodes,):
            return (self.node,)
        return _filled(name, (), count)

    def _of_maps(self, lead: tuple[int, ...]) -> tuple[str, ...]:
        """Names of the axes in front of maps or spectra."""
        if lead == (self.components,):
            return (self.component,)
        return ("half", self.component) if lead == (2, self.components) else ()

    def _is_spectrum(self, name: str) -> bool:
        return name == "fsc" or name.endswith("tau2")

    def _particles(self, group: str, name: str) -> str:
        """Which particles the first axis of a variable counts, '' for none."""
        if group == "posterior":
            return TRAINING if name in self.latents else ""
        if group == "log_likelihood":
            return {"training": TRAINING, "held_out": HELD_OUT}.get(name, "")
        return PARTICLE if group == "constant_data" else ""

    def coordinate(self, axis: str, length: int) -> np.ndarray:
        """Coordinate values of an axis."""
        if axis in self.rows:
            return self.rows[axis]
        if axis in ("z", "y", "x") and self.frame is not None:
            return (np.arange(length) - length // 2) * self.frame.spacing
        if axis == "axis":
            return np.array(["x", "y"])
        from_one = axis in FROM_ONE or (axis == "component" and not self.mean_first)
        return np.arange(length) + int(from_one)


def _filled(name: str, known: tuple[str, ...], count: int) -> tuple[str, ...]:
    return (*known[:count], *(f"{name}_dim_{i}" for i in range(len(known), count)))


def dataset(axes: Axes, group: str, arrays: Mapping[str, Any]) -> "xr.Dataset":
    """Arrays of one group with their axes named; a name that a variable has itself gets `_axis` appended."""
    import xarray as xr

    variables, coordinates = {}, {}
    safe = {name: _safe(name) for name in arrays}
    for name, value in arrays.items():
        value = np.asarray(value)
        if value.dtype.kind == "V":  # bfloat16 and its kin, which netCDF does not have
            value = value.astype(np.float32)
        names = axes.names(group, name, value.shape)
        dims = tuple(f"{d}_axis" if d in safe.values() else _safe(d) for d in names)
        variables[safe[name]] = xr.Variable(dims, value, encoding={"_FillValue": None})
        for old, new, length in zip(names, dims, value.shape, strict=True):
            coordinates[new] = xr.Variable((new,), axes.coordinate(old, length), encoding={"_FillValue": None})
    return xr.Dataset(variables, coordinates)


def _safe(name: str) -> str:
    """A name without the slash, which separates groups; `unquote` inverts it."""
    return name.replace("%", "%25").replace("/", "%2F")


def groups(posterior: "Posterior") -> dict[str, dict[str, np.ndarray]]:
    """The arrays of a posterior by the groups that ArviZ knows, and the groups `local` and `extra`."""
    found: dict[str, dict[str, np.ndarray]] = {
        "posterior": posterior.shared, "sample_stats": posterior.stats, "local": posterior.local, "extra": {},
    }  # fmt: skip
    for name, value in posterior.extra.items():
        group, _, rest = name.partition("/")
        if group in GIVEN and rest:
            found.setdefault(group, {})[rest] = value
        else:
            found["extra"][name] = value
    return {group: arrays for group, arrays in found.items() if arrays}


def save(posterior: "Posterior", path: Path) -> None:
    """Write a posterior in one step; see `Posterior.save`."""
    import xarray as xr

    axes = Axes(posterior)
    tree = {f"/{group}": dataset(axes, group, arrays) for group, arrays in groups(posterior).items()}
    family: dict[str, Any] = {"recipe": None, "name": type(posterior.family).__name__}
    if posterior.family is not None:
        try:
            family["recipe"], arrays = recipe.describe(posterior.family)
            plain = {f"a{i}": v for i, v in enumerate(arrays.values())}
            family["arrays"] = dict(zip(plain, arrays, strict=True))
            tree[f"/{_FAMILY_ARRAYS}"] = _unnamed(plain)
        except recipe.Inexpressible as error:
            family["reason"] = str(error)
            warnings.warn(
                f"{path}: the family cannot be written as text: {error}. All values are saved; to read the "
                "file, give the family: Posterior.load(path, family=...).",
                stacklevel=3,
            )
    texts = {
        "provenance": to_json(posterior.provenance),
        "trace": to_json(posterior.trace),
        "family": json.dumps(family),
    }
    root = {"format": FORMAT, "version": VERSION, "point": int(posterior.point)}
    tree["/"] = xr.Dataset({name: ((), text) for name, text in texts.items()}, attrs=root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        xr.DataTree.from_dict(tree).to_netcdf(temporary, mode="w", engine="h5netcdf")


def _unnamed(arrays: Mapping[str, np.ndarray]) -> "xr.Dataset":
    import xarray as xr

    named = {k: xr.Variable(_filled(k, (), v.ndim), v, encoding={"_FillValue": None}) for k, v in arrays.items()}
    return xr.Dataset(named)


def load(path: Path, family: Any = None) -> dict[str, Any]:
    """Read what `save` wrote: the fields of a Posterior by name.

    Raises:
        DataError: if the file is no posterior, or its family cannot be built again.
    """
    import xarray as xr

    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    try:
        with xr.open_datatree(path, engine="h5netcdf", mask_and_scale=False, decode_times=False) as tree:
            found = {node.path: node.to_dataset(inherit=False).load() for node in tree.subtree}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a readable netCDF file ({error}). It may have been cut short.") from error
    root = found.pop("/")
    if root.attrs.get("format") != FORMAT:
        raise DataError(f"{path}: this netCDF file holds no posterior of hetmodels. Give the posterior.nc of a run.")
    if root.attrs["version"] > VERSION:
        raise DataError(
            f"{path}: the file has version {root.attrs['version']}; this hetmodels reads up to {VERSION}. Update it."
        )
    arrays = {group.strip("/"): _arrays(part) for group, part in found.items()}
    texts = {name: json.loads(str(root[name].values[()])) for name in ("provenance", "trace", "family")}
    if family is None:
        family = _family(path, texts["family"], arrays.get(_FAMILY_ARRAYS, {}))
    given = {f"{group}/{name}": v for group in GIVEN for name, v in arrays.get(group, {}).items()}
    return {
        "family": family,
        "shared": arrays.get("posterior", {}),
        "point": bool(root.attrs["point"]),
        "local": arrays.get("local", {}),
        "stats": arrays.get("sample_stats", {}),
        "trace": texts["trace"],
        "provenance": texts["provenance"],
        "extra": arrays.get("extra", {}) | given,
    }


def _arrays(part: "xr.Dataset") -> dict[str, np.ndarray]:
    return {unquote(str(name)): part[name].values for name in part.data_vars}


def _family(path: Path, entry: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    if "reason" in entry:
        raise DataError(f"{path}: the family {entry['name']} was not written as text: {entry['reason']}. {_CURE}")
    if entry["recipe"] is None:
        return None
    try:
        return recipe.rebuild(entry["recipe"], {full: arrays[short] for short, full in entry["arrays"].items()})
    except DataError as error:
        raise DataError(f"{path}: {str(error).rstrip('.')}. {_CURE}") from error
