"""The neural family keeps the contracts, at any number of latents."""

import jax
import numpy as np
import numpyro
import pytest
from simulated import problem, simulated

from hetmodels.families import FAMILIES, NeuralField
from hetmodels.families.protocol import Frame, Neural, framed
from hetmodels.posterior import Posterior
from hetmodels.testing import check_family
from hetmodels.volumes.neural import GeometricWaves
from inference import SVI, fit
from inference.catalogue import engines_for
from inference.encoder import Encoder
from inference.engine import run

FRAME = Frame(12, 8.0, (1.0,) * 6)


@pytest.mark.parametrize("family", [NeuralField(hidden=16, layers=1, dims=d) for d in (0, 3)], ids=["0", "3"])
def test_it_keeps_the_contract(family):
    check_family(family)
    assert isinstance(family, Neural)


def test_it_is_listed_and_fits_by_gradients_only():
    assert FAMILIES["neural_field"].endswith("NeuralField")
    assert engines_for(NeuralField()) == ["svi", "mcmc"]


def drawn(family, seed=0):
    with numpyro.handlers.block():
        return numpyro.handlers.seed(family.shared, jax.random.key(seed))()


def test_every_site_is_a_weight_and_starts_by_the_seed():
    family = framed(NeuralField(dims=2, hidden=8, waves=GeometricWaves()), FRAME)
    first, again, other = drawn(family), drawn(family), drawn(family, 1)
    assert set(first) == set(family.weights())
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert not np.array_equal(first["decoder_blocks"], other["decoder_blocks"])
    assert family.sites(first | {"noise": 1.0}).keys() == first.keys()


def test_the_first_output_is_of_the_size_of_the_guessed_spectrum():
    """Root mean square about a quarter, as with PyTorch's start: noise that is soon unlearnt."""
    family = framed(NeuralField(hidden=256), Frame(32, 4.0, tuple(np.geomspace(100.0, 0.01, 16))))
    volume = family.volume(drawn(family), np.zeros(8, np.float32))
    k = np.random.default_rng(0).normal(size=(500, 3)) * 0.02
    relative = np.abs(volume.transform(k)) / np.interp(np.linalg.norm(k, axis=1) * 128, range(16), volume.envelope)
    assert 0.02 < np.sqrt((relative**2).mean()) < 0.6


@pytest.mark.parametrize("wrong", [{"dims": -1}, {"hidden": 0}, {"layers": -1}])
def test_bad_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        NeuralField(**wrong)


@pytest.mark.slow  # the command line fits one in the table of families and engines
@pytest.mark.parametrize("dims", [0, 2])
def test_a_fit_by_svi_keeps_what_is_needed_to_look_at_it(dims, tmp_path):
    data = simulated(n=60, size=12, pixel=16.0, snr=1.0)
    family = NeuralField(dims=dims, hidden=16, layers=1)
    posterior = fit(
        family, data.particles, SVI(local=Encoder(hidden=8, layers=1), iterations=6), key=jax.random.key(0), holdout=0.2
    )
    assert posterior.point
    assert posterior.local["mean"].shape == (60, dims)
    assert np.all(np.isfinite(posterior.local["log_evidence"]))
    assert posterior.trace[-1]["objective"] > posterior.trace[0]["objective"]
    assert posterior.extra.get("amortization_gap", np.ones(0)).shape == ((12,) if dims else (0,))
    assert np.all(posterior.extra.get("importance_gap", np.ones(0)) > -1e-3)
    posterior.save(tmp_path / "posterior.nc")
    again = Posterior.load(tmp_path / "posterior.nc")
    z = np.zeros(dims, np.float32) if dims else None
    assert np.allclose(again.map_at(z), posterior.map_at(z))


@pytest.mark.slow
def test_latents_of_images_of_a_network_are_known_as_well_as_is_said():
    """Images of the fitted decoder itself: latents lie inside one standard deviation for 68 of a hundred."""
    data = simulated(n=400, size=16, pixel=12.0, snr=0.5, states=3)
    task = problem(data.particles.with_holdout(0.2), NeuralField(dims=2, hidden=64, layers=2))
    engine = SVI(local=Encoder(hidden=64), iterations=15)
    state = run(engine, task, key=jax.random.key(0)).state
    shared = engine.draw(jax.random.key(1), task, state)
    images, z, _ = task.simulate(jax.random.key(2), shared, task.whole())
    about = engine.proposal(task, state)
    found = jax.jit(task.infer, static_argnames="draws")(
        jax.random.key(3), shared, images, about(images), draws=engine.proposals
    )
    off = (np.asarray(z) - found.mean) / np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
    assert 0.62 < (np.abs(off) < 1).mean() < 0.74
    assert 0.9 < np.sqrt((off**2).mean()) < 1.1
    centre, precision = about(images)  # and so does q by itself
    width = np.sqrt(np.diagonal(np.linalg.inv(np.asarray(precision)), axis1=1, axis2=2))
    assert 0.9 < np.sqrt((((np.asarray(z) - centre) / width) ** 2).mean()) < 1.1
