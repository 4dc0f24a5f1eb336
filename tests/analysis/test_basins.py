"""Basins and barriers of known landscapes, and the way that a run with two conformations takes between them."""

import numpy as np
import pytest
from planes import Plane

from hetmodels.analysis.basins import barriers, basins, way
from hetmodels.analysis.landscape import Landscape
from hetmodels.analysis.mixing_density import Grid
from hetmodels.posterior import Posterior

SIZE = 8


def wells(grid):
    """Two wells of depth 0 and 1 with a pass at 4 that lies off the straight line, and a dent of 0.4."""
    x, y = grid.nodes.T
    bent = y - 1 + x**2
    return (4 * (x**2 - 1) ** 2 + 0.5 * (x + 1) + 3 * bent**2 - 0.4 * np.exp(-((x - 1.6) ** 2 + y**2) * 60)).reshape(
        grid.shape
    )


@pytest.fixture(scope="module")
def grid():
    return Grid((np.linspace(-1.8, 1.8, 37), np.linspace(-1.0, 1.6, 27)))


def test_minima_count_by_what_parts_them_from_deeper_ones(grid):
    energy = wells(grid)
    first, second = basins(grid, energy)
    np.testing.assert_allclose(first.point, [-1, 0], atol=0.06)
    np.testing.assert_allclose(second.point, [1, 0], atol=0.06)
    assert first.depth == np.inf and second.depth == pytest.approx(4.5 - 1, abs=0.15)
    assert len(basins(grid, energy, deep=0.05)) >= len(basins(grid, energy))
    assert len(basins(grid, (grid.nodes**2).sum(1).reshape(grid.shape))) == 1


def test_the_barrier_is_that_of_the_lowest_pass_in_every_draw(grid):
    energy = wells(grid)
    first, second = basins(grid, energy)
    draws = energy.ravel() * np.array([1.0, 2.0, 0.5])[:, None]
    found = Landscape(grid, energy, energy, energy, "", draws)
    np.testing.assert_allclose(
        barriers(found, first.node, second.node, 3), np.array([1, 2, 0.5]) * (second.depth + second.energy), rtol=1e-6
    )
    straight = energy[:, np.argmin(np.abs(grid.axes[1]))].max() - first.energy
    assert barriers(found, first.node, second.node, 3)[0] < 0.7 * straight


def arch(rng, count=800):
    """Latents on an arch, dense at its two feet."""
    angle = np.pi * np.where(rng.random(count) < 0.25, rng.random(count), rng.choice([0.08, 0.92], count))
    z = np.stack([-np.cos(angle), 2 * np.sin(angle) - 0.7], axis=1) + 0.1 * rng.normal(size=(count, 2))
    error = 0.15**2 * np.eye(2)
    seen = z + 0.15 * rng.normal(size=z.shape)
    covariance = np.linalg.inv(np.linalg.inv(error) + np.eye(2))
    local = {"mean": seen @ np.linalg.inv(error) @ covariance, "covariance": np.tile(covariance, (count, 1, 1))}
    maps = rng.normal(size=(3, SIZE, SIZE, SIZE)).astype(np.float32)
    shared = {"maps": maps[None, None]}
    return Posterior(Plane(), shared, True, local, provenance={"box": SIZE, "spacing": 3.0})


def test_a_run_goes_round_where_there_are_no_particles():
    found = way(arch(np.random.default_rng(0)))
    feet = np.array([basin.point for basin in found.basins[:2]])
    np.testing.assert_allclose(feet[np.argsort(feet[:, 0])], [[-0.97, -0.2], [0.97, -0.2]], atol=0.2)
    assert found.axes == (0, 1) and found.basins[1].depth > 1.5
    assert found.path.points[:, 1].max() > 0.8  # the straight way would stay below 0
    low, middle, high = found.barrier
    assert 0.5 < low < middle < high and found.path.barrier == pytest.approx(middle, abs=1.0)
    np.testing.assert_allclose(found.latents, found.path.points)


@pytest.mark.slow
def test_one_cloud_has_one_basin_and_no_path():
    rng = np.random.default_rng(1)
    run = arch(rng)
    run.local["mean"][:] = 0.7 * rng.normal(size=(800, 2))
    found = way(run)
    assert len(found.basins) == 1 and found.path is None and found.barrier is None
