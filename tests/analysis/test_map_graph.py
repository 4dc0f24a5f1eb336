"""Ways and groups by the distances between maps do not depend on the coordinates of the latents."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from planes import SPACING, Plane

from hetmodels.analysis.map_graph import MapGraph, map_distances
from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior
from hetmodels.tree import pytree
from hetmodels.volumes.voxels import Voxels

SIZE, N = 8, 400


@pytree
class Bent(Plane):
    """The same maps under other coordinates, u = h(z)."""

    def volume(self, shared, u):
        maps = shared["maps"]
        z = jnp.stack([jnp.arcsinh(u[0]), u[1] + 0.3 * jnp.arcsinh(u[0]) ** 2])
        return Voxels(maps[0] + z[0] * maps[1] + z[1] * maps[2], SPACING)


def bent(z):
    return np.stack([np.sinh(z[:, 0]), z[:, 1] - 0.3 * z[:, 0] ** 2], axis=1)


@pytest.fixture(scope="module")
def run():
    rng = np.random.default_rng(0)
    angle = np.linspace(0, np.pi, N)
    z = np.stack([-np.cos(angle), np.sin(angle)], axis=1) + 0.03 * rng.normal(size=(N, 2))
    shared = {"maps": rng.normal(size=(1, 1, 3, SIZE, SIZE, SIZE)).astype(np.float32)}
    return Posterior(Plane(), shared, True, {"mean": z}, provenance={"box": SIZE, "spacing": SPACING})


@pytest.fixture(scope="module")
def graph(run):
    return MapGraph.of(run, 30)


def test_distances_belong_to_the_maps(run):
    z = run.local["mean"][::40]
    other = dataclasses.replace(run, family=Bent(), local={"mean": bent(run.local["mean"])})
    one, two = map_distances(run, z), map_distances(other, bent(z))
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-2)
    assert np.abs(one - one[0, 5] / np.linalg.norm(z[0] - z[5])).max() > 0.1


def test_the_way_keeps_to_the_particles_and_runs_from_end_to_end(graph, run):
    first, last = graph.ends()
    assert {graph.latents[first][0] < -0.8, graph.latents[last][0] < -0.8} == {True, False}
    way = graph.path(first, last)
    assert way[0] == first and way[-1] == last and len(way) > 6
    radius = np.linalg.norm(graph.latents[way], axis=1)
    assert radius.min() > 0.85
    angle = np.arctan2(graph.latents[way, 1], -graph.latents[way, 0])
    assert (np.diff(angle) > 0).all() or (np.diff(angle) < 0).all()
    assert graph.weights.sum() == pytest.approx(1) and len(graph.nearest) == N
    assert graph.at(graph.latents[3]) == 3


def test_all_are_joined_and_edges_are_short(graph):
    edges = graph.edges()
    np.testing.assert_allclose(edges, edges.T)
    assert np.isfinite([graph.path(0, k)[-1] for k in range(len(graph.rows))]).all()
    assert 2 < (edges > 0).sum(1).mean() < 8
    assert edges.max() < np.median(graph.distances)


def test_components_and_groups_are_those_of_the_maps(graph):
    found, share = graph.components(2)
    apart = np.linalg.norm(found[:, None] - found, axis=2)
    np.testing.assert_allclose(apart, graph.distances, rtol=1e-2, atol=0.02 * graph.distances.max())
    assert share.sum() == pytest.approx(1, abs=1e-3) and share[0] > share[1]
    assert (graph.weights @ found) == pytest.approx(0, abs=1e-6 * np.abs(found).max())
    group = graph.groups(2)
    assert set(group) == {0, 1}
    left = graph.latents[group == group[graph.ends()[0]], 0]
    assert np.sign(left).mean() ** 2 > 0.3


def test_without_latents_there_is_no_graph(run):
    with pytest.raises(UsageError, match="no continuous latents"):
        MapGraph.of(dataclasses.replace(run, local={"mean": np.empty((N, 0))}))
