"""What every engine returns and all analysis reads: shared values, per-particle results, trace and provenance."""

import dataclasses
import html
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from hetmodels.errors import DataError, UsageError, did_you_mean
from hetmodels.volumes.protocol import Volume


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """The result of a fit.

    Attributes:
        family: the family fitted, None for a model function.
        shared: shared values by name, (chains, draws, …); chains and draws are 1 for a point estimate.
        point: whether it is a point estimate.
        local: results of the particles, rows in table order: `mean` (N, dims), `covariance` (N, dims, dims),
            `responsibilities` (N, nodes), `contrast`, `outlier`, `log_evidence` [log p(y) - log p(y | noise only)],
            `log_evidence_se`, `log_predictive` [log p(y) - log p(y | noise of the reference spectrum), which runs on
            the same data share], `held_out` (bool), `half`, `unit` [number of the micrograph, or of the particle
            where micrographs are not known], all (N,), `rotation` (N, 3, 3), `shift` (N, 2) [Å].
            Empty for model functions.
        stats: statistics of the sampler, (chains, draws).
        trace: one dict per pass of the engine.
        provenance: versions, seed, settings as typed, data hash, box, pixel size.
        extra: further arrays, such as `half_maps`; those called `log_likelihood/…`, `posterior_predictive/…`
            (chains, draws, …), `observed_data/…` and `constant_data/…` go to the group of ArviZ of that name.
    """

    family: Any
    shared: dict[str, np.ndarray]
    point: bool
    local: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    stats: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    trace: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def chains(self) -> int:
        """Number of chains."""
        return next((v.shape[0] for v in self.shared.values()), 0)

    @property
    def draws(self) -> int:
        """Number of draws of each chain."""
        return next((v.shape[1] for v in self.shared.values()), 0)

    @property
    def particles(self) -> int:
        """Number of particles, those held out included; 0 for a model function."""
        return len(next(iter(self.local.values()), ()))

    def value(self, name: str) -> np.ndarray:
        """A shared value, its mean over chains and draws.

        Raises:
            UsageError: if there is none of this name.
        """
        if name not in self.shared:
            raise UsageError(f"Posterior: there is no shared value {name!r}.{did_you_mean(name, self.shared)}")
        draws = np.asarray(self.shared[name])
        if draws.shape[:2] == (1, 1):
            return draws[0, 0]
        kind = draws.dtype if draws.dtype.kind in "fc" else np.float64
        return draws.mean((0, 1), dtype=np.promote_types(kind, np.float64)).astype(kind)

    def shared_point(self) -> dict[str, jax.Array]:
        """All shared values, their means over chains and draws."""
        return dict(self._means)

    @cached_property
    def _means(self) -> dict[str, jax.Array]:
        with jax.ensure_compile_time_eval():  # kept arrays must not belong to a function being traced
            return {name: jnp.asarray(self.value(name)) for name in self.shared}

    def first(self) -> dict[str, jax.Array]:
        """The shared values of the first draw."""
        return {name: jnp.asarray(draws[0, 0]) for name, draws in self.shared.items()}

    def latent_names(self) -> set[str]:
        """Names of a particle's latents as sites of the model."""
        if self.family is None:
            return set()
        prior = self.family.conformation(self.first())
        named = set() if prior is None else set(prior) if isinstance(prior, dict) else {"z"}
        return named | {name for name in self.shared if name.startswith("pose_")}

    def latent(self, z: Any) -> Any:
        """A latent in the form that the family takes.

        Args:
            z: numbers in any shape of the right size; for a family with several named latents a dict, or all numbers
                in one row, in alphabetical order of the names, as in `local["mean"]`; None where there is no latent.

        Raises:
            UsageError: if there is no family, the size is wrong or a value lies outside the support.
        """
        family, who = self._need_family(), type(self.family).__name__
        prior = family.conformation(self.first())
        if prior is None:
            if z is not None and np.size(z):
                raise UsageError(f"{who}: all particles have the same density, there is no latent to choose.")
            return None
        laws = prior if isinstance(prior, dict) else {"z": prior}
        if z is None:
            raise UsageError(f"{who}: which density? Give z, {_described(laws)}.")
        values = z if isinstance(z, dict) else _split(laws, z, who)
        if set(values) != set(laws):
            raise UsageError(f"{who}: z must be {_described(laws)}, got {', '.join(sorted(values)) or 'nothing'}.")
        shaped = {name: _shaped(laws[name], name, values[name], who) for name in laws}
        return shaped if isinstance(prior, dict) else shaped["z"]

    def volume_at(self, z: Any = None) -> Volume:
        """The density of a particle with latent z (see `latent`; classes count from 0), at the mean shared values."""
        return self._need_family().volume(self.shared_point(), self.latent(z))

    def map_at(self, z: Any = None) -> np.ndarray:
        """Voxels of `volume_at(z)` in the box of the data."""
        return np.asarray(self.volume_at(z).density(*self.box()))

    def box(self) -> tuple[int, float]:
        """Box edge in pixels and pixel size [Å] of the data.

        Raises:
            DataError: if neither the family nor the provenance says.
        """
        frame = getattr(self.family, "frame", None)
        if frame is not None:
            return frame.size, frame.spacing
        if "box" not in self.provenance or "spacing" not in self.provenance:
            raise DataError("Posterior: the box of the data must be known, and neither family nor provenance says it.")
        return int(self.provenance["box"]), float(self.provenance["spacing"])

    def latent_of(self, row: int) -> Any:
        """A particle's latent for `volume_at`: its most probable node, or its posterior mean; None if there is none.

        Args:
            row: row of the particle table, from 0.

        Raises:
            UsageError: if there is no such particle.
        """
        family = self._need_family()
        if not 0 <= row < self.particles:
            raise UsageError(
                f"Posterior: rows of particles are counted from 0 and there are {self.particles}, got {row}."
            )
        if self.local["mean"].shape[1]:
            return self.local["mean"][row]
        if hasattr(family, "grids"):
            return family.grids(self.first())[0][int(self.local["responsibilities"][row].argmax())]
        return None

    def to_arviz(self, maps: bool = False) -> Any:
        """ArviZ's own container, of whichever version is installed: InferenceData before 1.0, else a DataTree.

        Groups: posterior, sample_stats (of samplers), log_likelihood, posterior_predictive, observed_data and
        constant_data. Of particles, the log likelihoods are `training` and `held_out`, log p(y) - log p(y | noise
        only), and the data compared are `shell_power`, the power per shell of a few dozen whitened images.

        Args:
            maps: include maps and variables of more than 100,000 numbers per draw, which make `az.summary` slow.
        """
        from hetmodels.arviz_bridge import to_arviz

        return to_arviz(self, maps=maps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one netCDF file, without pickle; a kill leaves no half-written file."""
        from hetmodels.container import save

        save(self, Path(path))

    @staticmethod
    def load(path: str | os.PathLike[str], family: Any = None) -> "Posterior":
        """Read a file that `save` wrote.

        Args:
            path: the file.
            family: use this family; by default the one described in the file is built again, for which its module is
                imported.

        Raises:
            DataError: if the file is no posterior, or the family there does not fit the version installed.
        """
        from hetmodels.container import load

        return Posterior(**load(Path(path), family))

    def _need_family(self) -> Any:
        if self.family is None:
            raise UsageError(
                "Posterior: densities and latents need a family; this is the posterior of a model function."
            )
        return self.family

    def _facts(self) -> dict[str, str]:
        facts = {"family": repr(self.family) if self.family is not None else "a model function"}
        facts["shared values"] = "point estimate" if self.point else f"{self.chains} chains of {self.draws} draws"
        if self.particles:
            held = int(np.sum(self.local.get("held_out", 0)))
            facts["particles"] = f"{self.particles}" + (f", {held} held out" if held else "")
        facts |= {name: str(self.provenance[name]) for name in ("engine", "data_hash") if name in self.provenance}
        return facts

    def __repr__(self) -> str:
        lines = [f"  {name}: {text}" for name, text in self._facts().items()]
        lines += [f"  {name} {v.shape[2:]} {v.dtype}" for name, v in self.shared.items()]
        return "\n".join(["Posterior", *lines])

    def _repr_html_(self) -> str:
        facts = self._facts() | {name: f"{v.shape[2:]} {v.dtype}" for name, v in self.shared.items()}
        cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
        return f"<table><caption>Posterior</caption>{cells}</table>"


def _described(laws: dict[str, dist.Distribution]) -> str:
    """'z (2 numbers)'."""
    sizes = {name: int(np.prod(law.event_shape)) for name, law in laws.items()}
    return " and ".join(f"{name} ({n} {'number' if n == 1 else 'numbers'})" for name, n in sorted(sizes.items()))


def _split(laws: dict[str, dist.Distribution], z: Any, who: str) -> dict[str, Any]:
    """All numbers of the latents in one row, by name."""
    flat = jnp.ravel(jnp.asarray(z))
    sizes = {name: int(np.prod(laws[name].event_shape)) for name in sorted(laws)}
    if flat.size != sum(sizes.values()):
        raise UsageError(f"{who}: z must be {_described(laws)}, got {flat.size} numbers.")
    parts = jnp.split(flat, np.cumsum(list(sizes.values()))[:-1])
    return dict(zip(sizes, parts, strict=True))


def _shaped(law: dist.Distribution, name: str, value: Any, who: str) -> jax.Array:
    shaped = jnp.asarray(value)
    if shaped.size != int(np.prod(law.event_shape)):
        raise UsageError(f"{who}: z must be {_described({name: law})}, got {shaped.size} numbers.")
    shaped = shaped.reshape(law.event_shape)
    if not isinstance(shaped, jax.core.Tracer) and not bool(jnp.all(law.support(shaped))):
        hint = " Nodes count from 0." if law.support.is_discrete else ""
        raise UsageError(f"{who}: {name} must lie in its support, {law.support}, got {np.asarray(value)}.{hint}")
    if law.support.is_discrete:
        return shaped.astype(jnp.int32)
    return shaped if jnp.issubdtype(shaped.dtype, jnp.inexact) else shaped.astype(float)
