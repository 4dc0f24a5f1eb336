"""Posteriors whose moments are known: by reference draws (posteriordb), in closed form, or by quadrature."""

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from hetmodels.arviz_bridge import ess, rhat


@dataclasses.dataclass(frozen=True)
class Known:
    """A model with its data and the moments of its posterior.

    `error` is the standard error of the mean that is known, `reference` a proper density to start SMC from.
    """

    model: Callable
    data: dict[str, Any]
    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    error: dict[str, np.ndarray] | None = None
    reference: dict[str, Any] | None = None
    log_evidence: float | None = None


def check(known: Known, draws: dict[str, np.ndarray], errors: float = 4.0, limit: float = 1.01) -> None:
    """Means lie within so many standard errors, and the chains agree."""
    own = {name: draws[name] for name in known.mean}
    count, mixed = ess(own, "mean"), rhat(own)
    for name, mean in known.mean.items():
        error = known.sd[name] / np.sqrt(count[name])
        error = np.hypot(error, 0.0 if known.error is None else known.error[name])
        off = np.abs(own[name].mean((0, 1), dtype=np.float64) - mean) / error
        assert np.all(off < errors), f"{name} is {off} standard errors from its mean"
        assert np.all(mixed[name] < limit), f"R-hat of {name} is {mixed[name]}"


# ---- closed form


def conjugate_regression() -> Known:
    rng = np.random.default_rng(0)
    design = rng.normal(size=(40, 3)) @ np.array([[1, 0.8, 0], [0, 0.6, 0], [0, 0, 2.0]])
    y = design @ np.array([1.0, -0.5, 0.3]) + 0.7 * rng.normal(size=40)

    def model(design, y):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(design @ b, 0.7), obs=y)

    precision = np.eye(3) + design.T @ design / 0.49
    covariance = np.linalg.inv(precision)
    total = 0.49 * np.eye(40) + design @ design.T
    evidence = -0.5 * (y @ np.linalg.solve(total, y) + np.linalg.slogdet(2 * np.pi * total)[1])
    data = {"design": design.astype(np.float32), "y": y.astype(np.float32)}
    mean, sd = covariance @ design.T @ y / 0.49, np.sqrt(np.diag(covariance))
    return Known(model, data, {"b": mean}, {"b": sd}, log_evidence=float(evidence))


def normal_inverse_gamma() -> Known:
    y = 2 + 1.5 * np.random.default_rng(1).normal(size=25)
    m0, k0, a0, b0 = 0.0, 0.5, 3.0, 4.0

    def model(y):
        variance = numpyro.sample("variance", dist.InverseGamma(a0, b0))
        centre = numpyro.sample("centre", dist.Normal(m0, jnp.sqrt(variance / k0)))
        numpyro.sample("y", dist.Normal(centre, jnp.sqrt(variance)), obs=y)

    n, mean = len(y), y.mean()
    k, a = k0 + n, a0 + n / 2
    m = (k0 * m0 + n * mean) / k
    b = b0 + 0.5 * ((y - mean) ** 2).sum() + 0.5 * k0 * n * (mean - m0) ** 2 / k
    gamma = jax.scipy.special.gammaln
    evidence = gamma(a) - gamma(a0) + a0 * np.log(b0) - a * np.log(b) + 0.5 * np.log(k0 / k) - n / 2 * np.log(2 * np.pi)
    spread = b / (a - 1)
    sd = {"centre": np.sqrt(spread / k), "variance": spread / np.sqrt(a - 2)}
    data = {"y": y.astype(np.float32)}
    return Known(model, data, {"centre": m, "variance": spread}, sd, log_evidence=float(evidence))


def mixture() -> Known:
    """The share of one of two overlapping normals."""
    rng = np.random.default_rng(2)
    y = np.where(rng.uniform(size=60) < 0.3, 2.5, 0.0) + rng.normal(size=60)

    def model(y):
        share = numpyro.sample("share", dist.Beta(2, 2))
        each = [jnp.log1p(-share) + dist.Normal(0, 1).log_prob(y), jnp.log(share) + dist.Normal(2.5, 1).log_prob(y)]
        numpyro.factor("y", jnp.logaddexp(*each))

    share = (np.arange(4000) + 0.5) / 4000
    pdf = lambda x: np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)  # noqa: E731
    log_p = np.log(6 * share * (1 - share))
    log_p += np.log((1 - share)[:, None] * pdf(y) + share[:, None] * pdf(y - 2.5)).sum(1)
    weight = np.exp(log_p - log_p.max())
    evidence = np.log(weight.mean()) + log_p.max()
    weight /= weight.sum()
    mean = weight @ share
    sd = np.sqrt(weight @ (share - mean) ** 2)
    return Known(model, {"y": y.astype(np.float32)}, {"share": mean}, {"share": sd}, log_evidence=float(evidence))


# ---- posteriordb


def _folder(name: str) -> Path:
    folder = Path(os.environ.get("HETMODELS_DATA") or "absent") / "posteriordb" / name
    if not folder.is_dir():
        pytest.skip("HETMODELS_DATA does not name the folder of reference files")
    return folder


def _json(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def _moments(path: Path, sites: dict[str, list[str]]) -> tuple[dict, dict, dict]:
    """Means, standard deviations and standard errors of the means of independent reference draws."""
    chains = _json(path)
    found = {site: np.array([[c[n] for n in names] for c in chains]) for site, names in sites.items()}
    flat = {site: np.moveaxis(v, 1, 2).reshape(-1, v.shape[1]).squeeze() for site, v in found.items()}
    mean, sd = ({s: getattr(v, what)(0) for s, v in flat.items()} for what in ("mean", "std"))
    return mean, sd, {s: v / np.sqrt(len(flat[s])) for s, v in sd.items()}


def _flat(*shape: int) -> dist.Distribution:
    return dist.ImproperUniform(constraints.real_vector if shape else constraints.real, (), shape)


def kidscore() -> Known:
    folder = _folder("kidiq-kidscore_momiq")
    data = _json(folder / "kidiq.json.zip")

    def model(iq, score):
        beta = numpyro.sample("beta", _flat(2))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
        numpyro.sample("score", dist.Normal(beta[0] + beta[1] * iq, sigma), obs=score)

    moments = _moments(folder / "kidiq-kidscore_momiq.json.zip", {"beta": ["beta[1]", "beta[2]"], "sigma": ["sigma"]})
    columns = {"iq": np.array(data["mom_iq"], np.float32), "score": np.array(data["kid_score"], np.float32)}
    start = {"beta": dist.Normal(jnp.zeros(2), jnp.array([50.0, 2.0])).to_event(1), "sigma": dist.LogNormal(3.0, 1.0)}
    return Known(model, columns, *moments, reference=start)


def earnings() -> Known:
    folder = _folder("earnings-logearn_height")
    data = _json(folder / "earnings.json.zip")

    def model(height, log_earn):
        beta = numpyro.sample("beta", _flat(2))
        sigma = numpyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
        numpyro.sample("log_earn", dist.Normal(beta[0] + beta[1] * height, sigma), obs=log_earn)

    sites = {"beta": ["beta[1]", "beta[2]"], "sigma": ["sigma"]}
    moments = _moments(folder / "earnings-logearn_height.json.zip", sites)
    columns = {"height": np.array(data["height"], np.float32), "log_earn": np.log(data["earn"]).astype(np.float32)}
    start = {"beta": dist.Normal(jnp.zeros(2), jnp.array([10.0, 0.5])).to_event(1), "sigma": dist.LogNormal(0.0, 1.0)}
    return Known(model, columns, *moments, reference=start)


def garch() -> Known:
    folder = _folder("garch-garch11")
    data = _json(folder / "garch.json.zip")

    def model(y, first):
        mu = numpyro.sample("mu", _flat())
        alpha0 = numpyro.sample("alpha0", dist.ImproperUniform(constraints.positive, (), ()))
        alpha1 = numpyro.sample("alpha1", dist.Uniform(0, 1))
        white = numpyro.sample("white", dist.Uniform(0, 1))
        beta1 = numpyro.deterministic("beta1", (1 - alpha1) * white)
        numpyro.factor("flat", jnp.log1p(-alpha1))  # beta1 is uniform as a density, not given alpha1

        def step(variance, before):
            variance = alpha0 + alpha1 * (before - mu) ** 2 + beta1 * variance
            return variance, variance

        _, rest = jax.lax.scan(step, first**2, y[:-1])
        sd = jnp.sqrt(jnp.concatenate([first[None] ** 2, rest]))
        numpyro.sample("y", dist.Normal(mu, sd), obs=y)

    names = ("mu", "alpha0", "alpha1", "beta1")
    moments = _moments(folder / "garch-garch11.json.zip", {name: [name] for name in names})
    columns = {"y": np.array(data["y"], np.float32), "first": np.array(data["sigma1"], np.float32)}
    return Known(model, columns, *moments, reference={"mu": dist.Normal(0.0, 10.0), "alpha0": dist.LogNormal(0.0, 1.0)})
