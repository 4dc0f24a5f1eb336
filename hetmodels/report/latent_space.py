"""Free energies along the latents, and which views show each motion."""

import numpy as np

from hetmodels.analysis.landscape import Landscape, MapMeasure, landscape, metric_of
from hetmodels.analysis.map_space import MapSpace
from hetmodels.analysis.mixing_density import latent_likelihood, prior_moments
from hetmodels.analysis.observability import observability
from hetmodels.errors import UsageError
from hetmodels.report import figures
from hetmodels.report.sections import Picture, Section
from hetmodels.report.source import Source

AXES = 3


def of_landscape(source: Source) -> Section | None:
    """Free energy along each of the first latents, with its error, and what the views show of it."""
    if not source.dims:
        return None
    posterior, title = source.posterior, "Landscape"
    axes = range(min(source.dims, AXES))
    try:
        found = [latent_likelihood(posterior, (axis,)) for axis in axes]
        seen = observability(posterior)
    except UsageError as error:
        return Section("landscape", title, [f"There is none: {error}"])
    space, centre = MapSpace.of(posterior), posterior.local["mean"].mean(0)
    words = [
        "How rare each conformation is, in units of kT: 1 kT is a factor of 2.7 in number. The uncertainty of single "
        "particles is taken out, and the energy is relative to the change of the map, not to the latent's own scale. "
        "Freezing and picking may have changed the populations."
    ]
    pictures = []
    for axis, likelihood in zip(axes, found, strict=True):
        energy = landscape(likelihood.smooth(), MapMeasure(metric_of(space, (axis,), centre)))
        finest = float(likelihood.finest[0])
        caption = (
            f"Along latent {axis + 1}, with 90 % bands. Features narrower than {finest:.2g} cannot be told by these "
            f"images. {seen.words(axis).partition(': ')[2].capitalize()}"
        )
        pictures.append(Picture(profile(energy, f"latent {axis + 1}"), caption))
    view, prior = posterior.local["rotation"][:, 2], np.diag(prior_moments(posterior)[1])
    for axis in list(axes)[:2]:
        share = 1 - source.latent_sd[:, axis] ** 2 / prior[axis]
        svg = figures.sphere(view, share, "share explained", (0.0, 1.0))
        caption = f"What the views show of latent {axis + 1}: share of its prior variance that an image explains."
        pictures.append(Picture(svg, caption))
    return Section("landscape", title, words, pictures)


def profile(energy: Landscape, label: str) -> str:
    """A free energy along one axis with its band."""
    nodes = energy.grid.axes[0]
    top = float(np.quantile(energy.energy, 0.9)) + 2
    with figures.drawing() as (out, axis):
        axis.fill_between(nodes, energy.low, energy.high, color=figures.BLUE, alpha=0.25, linewidth=0)
        axis.plot(nodes, energy.energy, color=figures.BLUE)
        axis.set(xlabel=label, ylabel="apparent free energy [kT]", ylim=(0, top), xlim=(nodes[0], nodes[-1]))
    return out.svg
