import dataclasses

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from hetmodels.families import Classes, Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.plain import PlainProblem
from hetmodels.posterior import Posterior
from inference import diagnostics

FRAME = Frame(8, 5.0, (1.0, 0.5, 0.2, 0.1))


def normal(shape=(4, 500), seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def posterior(shared, **fields):
    stats = {"diverging": np.zeros((4, 500), bool), "energy": normal()}
    return Posterior(fields.pop("family", None), shared, False, stats=fields.pop("stats", stats), **fields)


def test_draws_of_one_distribution_raise_no_warning():
    found = posterior({"mu": normal(), "theta": normal((4, 500, 2), 1), "fixed": np.ones((4, 500))})
    assert diagnostics.warnings(found) == []
    table = diagnostics.summary(found)
    assert list(table.index) == ["mu", "theta[0]", "theta[1]", "fixed"]
    assert list(table.columns) == ["mean", "sd", "ess_bulk", "ess_tail", "r_hat"]
    assert table.loc["mu", "ess_bulk"] == pytest.approx(2000, rel=0.15) and abs(table.loc["mu", "mean"]) < 0.1
    assert np.isnan(table.loc["fixed", "r_hat"])


def test_each_failure_is_told_with_its_numbers():
    apart = normal() + 3 * (np.arange(4) == 2)[:, None]
    slow = np.repeat(normal((4, 20), 1), 25, axis=1)
    stats = {"diverging": np.arange(2000).reshape(4, 500) < 7, "energy": np.cumsum(normal(seed=2), axis=1)}
    found = posterior({"apart": apart, "slow": slow}, stats=stats, provenance={"complete": False})
    text = diagnostics.warnings(found)
    assert any(t.startswith("R-hat is above 1.01") and "most for apart" in t for t in text)
    assert any("(bulk) is below 400" in t and "raise draws" in t for t in text)
    assert any(t.startswith("7 of 2000 transitions diverged") for t in text)
    assert not any("tree depth" in t for t in text)
    deep = posterior({"mu": normal()}, stats={"reached_max_treedepth": np.arange(2000).reshape(4, 500) < 30})
    assert [t[:54] for t in diagnostics.warnings(deep)] == ["30 of 2000 trajectories reached the largest tree depth"]
    assert any("missing information" in t for t in text) and any("time budget" in t for t in text)


def test_one_chain_few_draws_and_numbers_that_are_not_finite():
    one = posterior({"mu": normal((1, 500))}, stats={"energy": normal((1, 500))})
    assert "r_hat" not in diagnostics.summary(one) and "only one" in diagnostics.warnings(one)[0]
    few = posterior({"mu": normal((4, 3))}, stats={"energy": normal((4, 3))})
    assert any("3 draws of each chain say nothing" in t for t in diagnostics.warnings(few))
    bad = posterior({"mu": np.where(normal() > 2, np.nan, 0.0)})
    assert "not finite" in diagnostics.warnings(bad)[0]


def test_a_point_estimate_has_means_only():
    point = Posterior(None, {"mu": np.full((1, 1, 2), 3.0)}, True, trace=[{"pass": 0}])
    assert list(diagnostics.summary(point).columns) == ["mean"] and diagnostics.warnings(point) == []


def test_uncertain_evidence_is_told():
    local = {"mean": np.zeros((4, 0)), "log_evidence_se": np.array([0.1, 0.6, np.nan, 0.0])}
    point = Posterior(Homogeneous(frame=FRAME), {"map": np.zeros((1, 1, 8, 8, 8))}, True, local)
    assert "2 of 4 particles" in diagnostics.warnings(point)[0]


def test_a_poor_encoder_is_told():
    for gap, told in ((np.full(5, 0.4), False), (np.array([0.2, 4.0, 3.0]), True)):
        found = Posterior(None, {"a": np.zeros((1, 1))}, True, extra={"amortization_gap": gap})
        assert any("encoder" in text for text in diagnostics.warnings(found)) == told


def test_maps_count_by_a_power_that_no_relabelling_changes():
    maps = normal((4, 20, 2, 8, 8, 8)).astype(np.float32)
    weights = np.broadcast_to(np.array([0.3, 0.7]), (4, 20, 2))
    family = Classes(classes=2, frame=FRAME)
    found = diagnostics.functionals(posterior({"maps": maps, "weights": weights}, family=family))
    swapped = maps.copy()
    swapped[1] = maps[1, :, ::-1]
    again = diagnostics.functionals(posterior({"maps": swapped, "weights": weights}, family=family))
    assert set(found) == {"weights", "maps power"} and found["maps power"].shape == (4, 20, 4)
    np.testing.assert_allclose(again["maps power"], found["maps power"], rtol=1e-5)
    table = diagnostics.summary(posterior({"maps": maps, "weights": weights}, family=family))
    assert list(table.index) == ["weights[class 1]", "weights[class 2]", *(f"maps power[{s}]" for s in range(4))]
    half = np.fft.fftn(maps[2, 5], axes=(1, 2, 3)) / 8
    line = np.fft.fftfreq(8, 1 / 8)
    radius = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)
    shell = (np.rint(radius) == 2) & (radius <= 3)
    expected = (np.abs(half[:, shell]) ** 2).mean(1).sum()
    np.testing.assert_allclose(found["maps power"][2, 5, 2], expected, rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class Signed:
    """A family that says itself what does not depend on its gauge."""

    def shared(self):
        return {"axis": numpyro.sample("axis", dist.Normal(0, 1))}

    def conformation(self, shared):
        return None

    def volume(self, shared, z):
        raise NotImplementedError

    def functionals(self, shared):
        return {"length": jnp.abs(shared["axis"])}


def test_a_family_may_choose_its_functionals():
    flipped = (5 + normal()) * np.array([1, -1, 1, -1])[:, None]
    assert any("most for axis" in t for t in diagnostics.warnings(posterior({"axis": flipped})))
    assert diagnostics.warnings(posterior({"axis": flipped}, family=Signed())) == []


# ---- what ArviZ needs of a model function

Y, SIGMA = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]), jnp.full(8, 12.0)


def schools(y, sigma, count):
    mean = numpyro.sample("mean", dist.Normal(0, 5))
    offset = numpyro.sample("offset", dist.Normal(0, 3).expand([count]).to_event(1))
    numpyro.deterministic("effect", mean + offset)
    numpyro.sample("score", dist.Normal(mean + offset, sigma), obs=y)


def test_loo_and_compare_run_on_a_model_function():
    shared = {"mean": normal(), "offset": normal((4, 500, 8), 1)}
    problem = PlainProblem(schools, {"y": Y, "sigma": SIGMA, "count": 8})
    extra = diagnostics.pointwise(problem, shared | {"effect": shared["mean"][..., None] + shared["offset"]})
    assert set(extra) == {"log_likelihood/score", "observed_data/score", "constant_data/sigma"}
    expected = dist.Normal(shared["mean"][..., None] + shared["offset"], SIGMA).log_prob(Y)
    np.testing.assert_allclose(extra["log_likelihood/score"], expected, rtol=1e-5)
    data = posterior(shared, extra=extra).to_arviz()
    first = az.loo(data, pointwise=True)
    assert first.n_data_points == 8 and np.isfinite(first.se)
    table = az.compare({"a": data, "b": posterior({k: v + 4 for k, v in shared.items()}, extra=extra).to_arviz()})
    assert len(table) == 2
    assert jax.tree.all(jax.tree.map(np.array_equal, extra["observed_data/score"], np.asarray(Y)))
