"""From images to conformations, a cell at a time: open it in Jupyter or an editor that knows `# %%`, or run it."""

# %% Images whose truth is known: a molecule whose arm swings
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from hetmodels.analysis.basins import basins
from hetmodels.analysis.clusters import clusters
from hetmodels.analysis.compare import compare
from hetmodels.analysis.landscape import MapMeasure, landscape, metric_of
from hetmodels.analysis.map_graph import MapGraph
from hetmodels.analysis.map_space import MapSpace
from hetmodels.analysis.metrics import latent_spearman
from hetmodels.analysis.mixing_density import latent_likelihood
from hetmodels.data import Particles
from hetmodels.data.phantom import phantom
from hetmodels.data.simulate import Recording, simulate
from hetmodels.data.star import read_star
from hetmodels.data.views import Microscope, random_views
from hetmodels.families import Homogeneous, Subspace
from inference import EM, fit

SMOKE = "--smoke" in sys.argv  # a tiny run, to see that it works
COUNT, BOX, PIXEL, PASSES = (200, 16, 12.0, 2) if SMOKE else (3000, 32, 6.0, 15)

folder = tempfile.TemporaryDirectory()
views = random_views(np.random.default_rng(0), COUNT, Microscope())
recording = Recording(BOX, PIXEL, snr=0.3, weights=(4, 2, 1, 2, 4))
swings = np.linspace(0, 1, 5)[:, None]
star = Path(folder.name) / "particles.star"
made = simulate(star, phantom(5, BOX, PIXEL), views, recording, seed=0, latents=swings)

# %% What is there: the last line of a cell is shown as a table
particles = Particles.open(made.star)
particles  # noqa: B018

# %% Two descriptions of the same images
one, plane = (fit(family, particles, EM(iterations=PASSES), key=jax.random.key(0)) for family in (
    Homogeneous(), Subspace(dims=1)))  # fmt: skip
plane  # noqa: B018

# %% Which do images support that neither has seen?
comparison = compare({"one map": one, "one motion": plane})
print(comparison.verdict())

# %% The latents against the truth, the only step that needs it
truth = read_star(made.truth / "truth.star")["particles"]
swing = truth["_hetTrueLatent1"].to_numpy().astype(float)
print(f"rank correlation with the true swing: {latent_spearman(swing, plane.local['mean']):.2f}")

# %% How rare is each conformation? The error of each particle's latent is taken out
likelihood = latent_likelihood(plane, (0,))
space = MapSpace.of(plane)
energy = landscape(likelihood.smooth(), MapMeasure(metric_of(space, (0,), plane.local["mean"].mean(0))))
for basin in basins(energy.grid, energy.energy):
    print(f"a basin at latent {basin.point[0]:+.2f}, {basin.energy:.1f} kT")

# %% Do the conformations form clusters?
print(clusters(plane).words)

# %% From end to end of the motion through particles that were seen, and their maps
graph = MapGraph.of(plane, 20)
way = graph.path(*graph.ends())
maps = [plane.map_at(graph.latents[k]) for k in way]
print(f"{len(maps)} maps of {maps[0].shape} along the way, rows {graph.rows[way].tolist()}")
folder.cleanup()
