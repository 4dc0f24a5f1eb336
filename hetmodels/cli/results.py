"""What a finished fit leaves in its folder: posterior.nc, particles.star, maps and metrics."""

import logging
from typing import Any

import numpy as np

from hetmodels.analysis import masks
from hetmodels.analysis.fsc import HalfMaps, half_map_fsc, write_fsc_star
from hetmodels.analysis.local_resolution import local_resolution
from hetmodels.analysis.particle_maps import solvent_zero
from hetmodels.analysis.sharpening import guinier_fit, sharpen
from hetmodels.data.export import write_particles
from hetmodels.data.fields import euler_angles
from hetmodels.data.maps import write_map
from hetmodels.data.particles import Particles
from hetmodels.errors import DataError
from hetmodels.families.protocol import Moving
from hetmodels.posterior import Posterior
from hetmodels.run_directory import RunDirectory

_log = logging.getLogger("hetmodels.fit")
_FEWEST_SHELLS = 4


def write_results(
    run: RunDirectory, posterior: Posterior, particles: Particles, mask: np.ndarray | None
) -> dict[str, Any]:
    """Write everything; returns the metrics."""
    run.volumes.mkdir(exist_ok=True)
    posterior.save(run.posterior)
    metrics: dict[str, Any] = {"particles": len(particles), "box": particles.size, "pixel": particles.spacing}
    if posterior.trace and posterior.trace[-1].get("objective") is not None:
        metrics["objective"] = posterior.trace[-1]["objective"]
    metrics |= posterior.provenance.get("starts", {})
    metrics |= _write_maps(run, posterior, particles, mask)
    if posterior.local:
        held = posterior.local["held_out"]
        evidence = posterior.local["log_evidence"]
        metrics["log_likelihood_training"] = float(evidence[~held].mean())
        if held.any():
            metrics["log_likelihood_held_out"] = float(evidence[held].mean())
        if particles.metadata is not None:
            columns = particle_columns(posterior) | pose_columns(posterior, particles)
            write_particles(particles.metadata, run.particles, columns, index=particles.rows)
    run.merge_metrics(metrics)
    return metrics


def particle_columns(posterior: Posterior) -> dict[str, np.ndarray]:
    """The columns that inference adds to a particle table, by STAR label without the underscore."""
    local = posterior.local
    columns: dict[str, np.ndarray] = {}
    deviation = np.sqrt(np.maximum(np.diagonal(local["covariance"], axis1=1, axis2=2), 0))
    for axis in range(local["mean"].shape[1]):
        columns[f"hetLatent{axis + 1}"] = local["mean"][:, axis]
        columns[f"hetLatentSd{axis + 1}"] = deviation[:, axis]
    nodes = local["responsibilities"]
    if nodes.shape[1] > 1:
        best = nodes.argmax(1)
        columns |= {"hetClass": best + 1, "hetClassProbability": nodes[np.arange(len(best)), best]}
        columns["rlnClassNumber"] = best + 1
    columns["hetOutlierProbability"] = local["outlier"]
    columns["hetHeldOut"] = local["held_out"].astype(int)
    columns["hetLogLikelihood"] = local["log_evidence"]
    return columns


def pose_columns(posterior: Posterior, particles: Particles) -> dict[str, np.ndarray]:
    """RELION's angles and origins where poses were inferred, in the unit that the table's format has."""
    metadata = particles.metadata
    if metadata is None or str(posterior.provenance.get("pose", "Known")).startswith("Known"):
        return {}
    angles = euler_angles(np.asarray(posterior.local["rotation"], np.float64))
    columns = {f"rlnAngle{name}": angles[:, i] for i, name in enumerate(("Rot", "Tilt", "Psi"))}
    origin = -np.asarray(posterior.local["shift"], np.float64) / particles.relative[:, None]
    block, pixel, unit = getattr(metadata.table, "block", ()), metadata.pixel, "Angst"
    old = "_rlnOriginX" in block or metadata.kind.startswith(("relion 1", "relion 2", "relion 3.0"))
    if old and "_rlnOriginXAngst" not in block and pixel is not None:
        origin, unit = origin / pixel[particles.rows, None], ""
    return columns | {f"rlnOrigin{axis}{unit}": origin[:, i] for i, axis in enumerate("XY")}


def _write_maps(
    run: RunDirectory, posterior: Posterior, particles: Particles, mask: np.ndarray | None
) -> dict[str, Any]:
    size, spacing = particles.size, particles.spacing
    family = posterior.family
    if family is None:
        return {}
    if isinstance(family, Moving):
        return _write_at_rest(run, posterior, size, spacing, mask)
    if hasattr(family, "grids"):
        return _write_classes(run, posterior, size, spacing, mask)
    prior = family.conformation(posterior.shared_point())
    if prior is not None:
        if not isinstance(prior, dict):
            middle = posterior.local["mean"].mean(0).reshape(prior.event_shape)
            write_map(run.map, solvent_zero(np.asarray(posterior.volume_at(middle).density(size, spacing))), spacing)
        return {}
    joined = solvent_zero(np.asarray(posterior.volume_at().density(size, spacing)))
    write_map(run.map, joined, spacing)
    if "half_maps" not in posterior.extra:
        return {}
    return _write_halves(run, joined, posterior.extra["half_maps"][:, 0], spacing, mask)


def _write_at_rest(
    run: RunDirectory, posterior: Posterior, size: int, spacing: float, mask: np.ndarray | None
) -> dict[str, Any]:
    """The map with every body at rest, and where there are half maps theirs likewise."""
    family, shared = posterior.family, posterior.shared_point()
    rest = np.zeros(posterior.local["mean"].shape[1], np.float32)
    joined = solvent_zero(np.asarray(posterior.volume_at(rest).density(size, spacing)))
    write_map(run.map, joined, spacing)
    if "half_maps" not in posterior.extra:
        return {}
    seen = np.asarray(family.masks(shared)) * posterior.extra["half_maps"]
    return _write_halves(run, joined, seen.sum(1), spacing, mask)


def _write_halves(
    run: RunDirectory, joined: np.ndarray, halves: np.ndarray, spacing: float, mask: np.ndarray | None
) -> dict[str, Any]:
    first, second = (solvent_zero(half) for half in halves)
    write_map(run.half1, first, spacing)
    write_map(run.half2, second, spacing)
    return _write_validation(run, joined, [first, second], spacing, mask)


def _write_classes(
    run: RunDirectory, posterior: Posterior, size: int, spacing: float, mask: np.ndarray | None
) -> dict[str, Any]:
    shared = posterior.shared_point()
    nodes, log_weights = posterior.family.grids(shared)
    maps = [solvent_zero(np.asarray(posterior.volume_at(node).density(size, spacing))) for node in nodes]
    for number, values in enumerate(maps, 1):
        write_map(run.class_map(number), values, spacing)
    weights = np.exp(np.asarray(log_weights))
    write_map(run.map, np.tensordot(weights, np.stack(maps), 1), spacing)
    shares = posterior.local["responsibilities"][~posterior.local["held_out"]].mean(0)
    metrics = {"class_shares": [float(v) for v in shares]}
    if "half_maps" in posterior.extra:
        found = []
        design = np.stack([np.asarray(posterior.family.design(node)) for node in nodes])
        halves = np.einsum("nl,hlzyx->hnzyx", design, posterior.extra["half_maps"])
        for whole, *pair in zip(maps, *halves, strict=True):
            inside = masks.from_map(whole, spacing) if mask is None else mask
            curve = half_map_fsc(solvent_zero(pair[0]), solvent_zero(pair[1]), spacing, inside).final
            found.append(curve.resolution(0.143).resolution)
        metrics["class_resolution_0143"] = found
    return metrics


def _write_validation(
    run: RunDirectory, joined: np.ndarray, halves: list[np.ndarray], spacing: float, mask: np.ndarray | None
) -> dict[str, Any]:
    if mask is None:
        mask = masks.from_map(joined, spacing)
    write_map(run.mask, mask, spacing)
    found: HalfMaps = half_map_fsc(halves[0], halves[1], spacing, mask)
    write_fsc_star(run.fsc, found)
    curve = found.final
    crossing = curve.resolution(0.143)
    metrics = {
        "resolution_0143": crossing.resolution,
        "resolution_0143_unmasked": found.unmasked.resolution(0.143).resolution,
    }
    line = guinier_fit(joined, curve)
    bfactor = line.bfactor if line is not None and line.shells >= _FEWEST_SHELLS else 0.0
    write_map(run.sharpened, sharpen(joined, curve, bfactor).astype(np.float32), spacing)
    return metrics | {"bfactor": bfactor} | _write_local_resolution(run, halves, spacing, mask, crossing.resolution)


def _write_local_resolution(
    run: RunDirectory, halves: list[np.ndarray], spacing: float, mask: np.ndarray, resolution: float
) -> dict[str, Any]:
    """Local resolution in windows seven times as wide as the resolution, less where the mask is too small for them."""
    found, failed = None, None
    for times in (7, 5, 3, 1):
        width = min(max(50.0, 10 * spacing, times * resolution), len(mask) * spacing)
        try:
            found = local_resolution(
                halves[0], halves[1], spacing, mask, step=width / 2, radius=width / 4, edge=width / 2
            )
            break
        except DataError as error:
            failed = error
    if found is None:
        _log.warning("no map of the local resolution: %s", failed)
        return {}
    write_map(run.local_resolution, found.map(), spacing)
    return {"local_resolution_median": float(np.median(found.resolution)), "local_resolution_window": width}
