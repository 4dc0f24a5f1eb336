import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from hetmodels.analysis.landscape import LatentMeasure, MapMeasure, landscape, metric_of
from hetmodels.analysis.map_space import MapSpace
from hetmodels.analysis.mixing_density import Grid, LatentLikelihood, MixingDensity, latent_likelihood
from hetmodels.analysis.observability import observability
from hetmodels.analysis.paths import minimum_energy_path
from hetmodels.errors import UsageError
from hetmodels.imaging.rotations import uniform
from hetmodels.posterior import Posterior
from hetmodels.tree import pytree, static
from hetmodels.volumes.voxels import Voxels

SIZE = 12
MAPS = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, SIZE)).astype(np.float32)


@pytree
class Line:
    """One coordinate u with a normal prior, in which maps change as warp(u)."""

    bent: bool = static(default=False)

    def shared(self):
        return {}

    def conformation(self, shared):
        return dist.Normal(0, 2).expand([1]).to_event(1)

    def volume(self, shared, z):
        step = z[0] + 0.15 * z[0] ** 3 if self.bent else z[0]
        return Voxels(shared["maps"][0] + step * shared["maps"][1], 3.0)


def normal_posterior(n, tau, errors, seed=0, prior=2.0):
    """Estimates with errors of a population N(0.5, tau²), their posteriors under the prior N(0, prior²)."""
    rng = np.random.default_rng(seed)
    z = 0.5 + tau * rng.normal(size=n)
    error = rng.choice(errors, n)
    estimate = z + error * rng.normal(size=n)
    variance = 1 / (1 / error**2 + 1 / prior**2)
    local = {"mean": (variance / error**2 * estimate)[:, None], "covariance": variance[:, None, None]}
    return Posterior(Line(), {"maps": MAPS[None, None]}, True, local, provenance={"box": SIZE, "spacing": 3.0})


def moments(nodes, weights):
    mean = weights @ nodes
    return mean, weights @ (nodes - mean) ** 2


def test_the_wrong_estimators_are_wrong_and_the_deconvolved_density_is_right():
    """Histograms of estimates and of means have variances tau² + s² and below tau² (prior not the population)."""
    tau, prior, n = 0.8, 2.0, 6000
    posterior = normal_posterior(n, tau, [0.5, 1.0, 1.5])
    found = latent_likelihood(posterior, points=61)
    mean, variance = moments(found.grid.nodes[:, 0], found.weights().weights)
    assert found.weights().gap < 1e-5
    assert mean == pytest.approx(0.5, abs=0.06) and variance == pytest.approx(tau**2, abs=0.12)
    m, v = posterior.local["mean"][:, 0], posterior.local["covariance"][:, 0, 0]
    estimates = m * (1 / v) / (1 / v - 1 / prior**2)
    assert estimates.var() > 2 * tau**2 and abs((m.var() + v.mean()) - tau**2) > 0.15
    assert found.error[0] == pytest.approx(1.0, rel=0.05)
    assert found.finest[0] == pytest.approx(np.pi * found.error[0] / np.sqrt(np.log(n)))


def bimodal(seed, n=2000, s=1.0):
    rng = np.random.default_rng(seed)
    z = np.where(rng.random(n) < 0.6, -2, 2) + 0.7 * rng.normal(size=n)
    grid = Grid((np.linspace(-5, 5, 41),))
    y = z + s * rng.normal(size=n)
    return LatentLikelihood(grid, -0.5 * ((y[:, None] - grid.nodes[:, 0]) / s) ** 2, np.array([s])), grid


def log_truth(z):
    wells = 0.6 * np.exp(-0.5 * ((z + 2) / 0.7) ** 2) + 0.4 * np.exp(-0.5 * ((z - 2) / 0.7) ** 2)
    return np.log(wells) - np.log(0.7 * np.sqrt(2 * np.pi))


def test_two_wells_as_far_apart_as_four_errors_are_told_with_a_band_that_holds_the_truth():
    likelihood, grid = bimodal(0, n=600)
    found = likelihood.smooth()
    low, high = found.band(0.98)
    inside = np.abs(grid.axes[0]) < 4
    truth = log_truth(grid.axes[0])
    assert np.mean((low <= truth) & (truth <= high), where=inside) > 0.9
    at = lambda z: np.abs(grid.axes[0] - z).argmin()  # noqa: E731
    assert found.density[at(-2)] > 3 * found.density[at(0)] < found.density[at(2)]
    assert found.density.sum() * grid.cell == pytest.approx(1)


@pytest.mark.slow
def test_bands_of_the_log_density_cover_it():
    """Two wells four errors apart, 50 repeats: the 90 per cent band holds the truth at 85 to 95 per cent."""
    inside = []
    for seed in range(50):
        likelihood, grid = bimodal(seed)
        low, high = likelihood.smooth(seed).band(0.9)
        truth = log_truth(grid.axes[0])
        inside.append(((low <= truth) & (truth <= high))[np.abs(grid.axes[0]) < 4.6])
    assert 0.85 < np.mean(inside) < 0.95


def test_the_energy_per_change_of_map_is_the_same_in_warped_coordinates_and_the_naive_one_is_not():
    u = np.linspace(-1.5, 1.5, 61)
    grid = Grid((u,))
    z, jacobian = u + 0.15 * u**3, 1 + 0.45 * u**2
    density = np.exp(-0.5 * (z / 0.8) ** 2) * jacobian  # of u, where z ~ N(0, 0.8²)
    draws = MixingDensity(grid, np.log(density / density.sum())[None], np.zeros(1))
    provenance = {"box": SIZE, "spacing": 3.0}
    posterior = Posterior(
        Line(bent=True), {"maps": MAPS[None, None]}, True, {"mean": np.zeros((1, 1))}, provenance=provenance
    )
    metric = metric_of(MapSpace.of(posterior), (0,), np.zeros(1))
    found, naive = landscape(draws, MapMeasure(metric)), landscape(draws, LatentMeasure())
    truth = 0.5 * (z / 0.8) ** 2
    np.testing.assert_allclose(found.energy, truth, atol=0.01)
    assert np.abs(naive.energy - naive.energy[30] - truth).max() > 0.3
    assert "per unit of change of the map" in found.reference
    surface = found.function()
    step = 1e-4
    for place in (-0.7, 0.33):
        slope = (surface(np.array([[place + step]])) - surface(np.array([[place - step]]))) / (2 * step)
        np.testing.assert_allclose(surface.gradient(np.array([[place]]))[0], slope, rtol=1e-3)
    assert surface(np.array([[3.0]]))[0] > surface(np.array([[1.5]]))[0] + 100


def test_grids_of_two_axes_and_wrong_axes():
    n, rng = 300, np.random.default_rng(1)
    local = {"mean": rng.normal(size=(n, 1)), "covariance": np.full((n, 1, 1), 0.1)}
    posterior = Posterior(Line(), {"maps": MAPS[None, None]}, True, local)
    for axes in ((1,), (), (0, 0), (0, 1, 2, 3)):
        with pytest.raises(UsageError, match="one to three"):
            latent_likelihood(posterior, axes)
    grid = Grid((np.linspace(0, 1, 3), np.linspace(0, 2, 4)))
    field = np.arange(12.0)
    rough = sum(((np.diff(field.reshape(3, 4), axis=a)) ** 2).sum() for a in (0, 1))
    assert field @ grid.laplacian() @ field == pytest.approx(rough) and grid.cell == pytest.approx(1 / 3)
    np.testing.assert_allclose(grid.nodes[5], [0.5, 2 / 3])


def test_views_along_a_motion_do_not_see_it():
    """Information about a motion along z goes as sin² of the angle between beam and z; the law by view."""
    n = 4000
    rotation = np.asarray(uniform(jax.random.key(0), n))
    information = 30 * (1 - rotation[:, 2, 2] ** 2)
    local = {
        "mean": np.zeros((n, 1)), "covariance": (1 / (1 / 4 + information))[:, None, None], "rotation": rotation,
    }  # fmt: skip
    found = observability(Posterior(Line(), {"maps": MAPS[None, None]}, True, local), order=2)
    assert found.counts.sum() == n and len(found.directions) == 96
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1)
    sine = 1 - found.directions[:, 2] ** 2
    expected = 30 * sine / (30 * sine + 1 / 4)
    clear = sine > 0.3
    np.testing.assert_allclose(found.share[clear, 0], expected[clear], atol=0.02)
    hidden = found.hidden(0, below=0.95)
    assert len(hidden) and np.all(hidden[:, 2] > 0.8)
    assert "views hide it" in found.words(0)
    with pytest.raises(UsageError, match="no continuous latents"):
        observability(Posterior(Line(), {}, True, {}))


def test_two_wells_in_a_plane_and_the_path_between_them():
    """Wells at (±1.5, 0) joined over (0, 1): the barrier lies off the straight line, and so does the path."""
    rng = np.random.default_rng(7)
    angle = np.pi * rng.beta(0.6, 0.6, 600)
    z = np.column_stack([-1.5 * np.cos(angle), np.sin(angle)]) + 0.15 * rng.normal(size=(600, 2))
    error = 0.3
    grid = Grid((np.linspace(-2.4, 2.4, 11), np.linspace(-1.0, 1.9, 11)))
    y = z + error * rng.normal(size=z.shape)
    log_density = -0.5 * (((y[:, None] - grid.nodes) / error) ** 2).sum(2)
    density = LatentLikelihood(grid, log_density, np.full(2, error)).smooth()
    assert density.density.sum() * grid.cell == pytest.approx(1)
    surface = landscape(density, LatentMeasure()).function()
    ends = np.array([-1.4, 0.1]), np.array([1.4, 0.1])
    path = minimum_energy_path(surface, surface.gradient, ends, through=np.array([[0.0, 1.0]]))
    assert path.saddle[1] > 0.6 and abs(path.saddle[0]) < 1 and 0.3 < path.barrier < 4
    straight = surface(np.linspace(*ends, 20)).max() - surface(ends[0][None])[0]
    assert path.barrier < straight
