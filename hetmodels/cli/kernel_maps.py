"""The maps that `hetmodels volumes --kernel` reconstructs from the particles around points of the latent space."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetmodels.cli.run_folder import particles_of
from hetmodels.run_directory import RunDirectory

if TYPE_CHECKING:
    from hetmodels.analysis.kernel import KernelMap
    from hetmodels.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class Report:
    """What is known of one reconstruction.

    Attributes:
        facts: by name.
        words: in a sentence.
    """

    facts: dict[str, Any]
    words: str


def write_kernel_maps(
    source: RunDirectory, points: list[tuple[float, ...]], folder: Path, coarse: float | None = None
) -> list[Report]:
    """Reconstruct at each point and write the map, its half maps and its control.

    Args:
        source: the run.
        points: of the latent space.
        folder: for the maps.
        coarse: choose particles by latents inferred from shells coarser than this [Å].

    Raises:
        DataError: if the images of the run are not found, or are others now.
        UsageError: if the run has inferred its poses.
    """
    import numpy as np

    from hetmodels.analysis.kernel import kernel_map
    from hetmodels.analysis.particle_maps import solvent_zero
    from hetmodels.data.maps import write_map
    from hetmodels.posterior import Posterior
    from inference.weighted import Reconstruction, coarse_latents

    posterior = Posterior.load(source.posterior)
    particles = particles_of(source)
    solve = Reconstruction.of(posterior, particles)
    if coarse is not None:
        posterior = coarse_latents(posterior, particles, coarse)
    reports = []
    for number, z in enumerate(points, 1):
        found = kernel_map(posterior, np.array(z), solve)
        parts = {"": found.map, "_half1": found.half1, "_half2": found.half2, "_control": found.control}
        for suffix, values in parts.items():
            write_map(folder / f"at_{number:03d}_kernel{suffix}.mrc", solvent_zero(values), particles.spacing)
        reports.append(_report(number, found, posterior, z, coarse))
    return reports


def _report(
    number: int, found: "KernelMap", posterior: "Posterior", z: tuple[float, ...], coarse: float | None
) -> Report:
    """Resolution between halves, agreement with the model's map, and what stands out beyond the control."""
    import numpy as np

    from hetmodels.analysis import fsc
    from hetmodels.analysis.particle_maps import solvent_zero

    size, spacing = posterior.box()
    model, own, control = (solvent_zero(m) for m in (posterior.map_at(z), found.map, found.control))
    half = fsc.fsc(solvent_zero(found.half1), solvent_zero(found.half2), spacing).resolution(0.143).resolution
    agreement = fsc.fsc(model, own, spacing).correlation[1:].mean()
    beside = fsc.fsc(model, control, spacing).correlation[1:].mean()
    used = np.bincount(found.chosen[1:], minlength=len(found.numbers))
    share = float((used * found.numbers).sum() / used.sum())
    facts = {
        "point": list(z), "effective_particles": share, "resolution_0143": half, "fsc_with_model": float(agreement),
        "control_fsc_with_model": float(beside), "bandwidths": found.bandwidths.tolist(),
        "effective_particles_by_bandwidth": found.numbers.tolist(), "bandwidth_by_shell": found.chosen.tolist(),
        "latents_to": coarse,
    }  # fmt: skip
    words = (
        f"at_{number:03d}_kernel.mrc: {share:.0f} effective particles on average over shells, {half:.1f} Å between its "
        f"halves; mean FSC with the model's map {agreement:.3f}, of as many particles at random {beside:.3f}. "
    )
    if coarse is None:
        words += (
            "The latents came from the same images: a difference from the model's map is evidence, agreement alone is "
            "not; --latents-to A frees the shells finer than A Å."
        )
    else:
        words += f"Particles were chosen by shells coarser than {coarse:g} Å: finer ones owe nothing to the model."
    return Report(facts, words)
