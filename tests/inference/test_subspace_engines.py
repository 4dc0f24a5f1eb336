"""Three engines on one subspace: the mode by EM, a variational fit, and Hamiltonian chains over all maps."""

import jax
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size
from simulated import simulated

from hetmodels.families import Subspace
from inference import EM, MCMC, SVI, fit


def aligned(draws, like):
    """Draws (chains, draws, voxels), each with the sign that brings it nearer: the component has none of its own."""
    return draws * np.sign(draws @ like)[..., None]


@pytest.mark.slow
def test_em_svi_and_hmc_agree():
    made = simulated(n=400, size=8, snr=0.5, states=5, seed=1)
    family, key = Subspace(dims=1), jax.random.key(0)
    first = fit(family, made.particles, EM(iterations=40), key=key)
    exact = EM(iterations=100, mixture_tolerance=-1.0, solver_steps=10)  # the mode under spectra and noise of `first`
    em = fit(family, made.particles, exact, key=key, given=first, start=first)
    svi = fit(family, made.particles, SVI(iterations=400), key=key, given=first, start=first)
    hmc = fit(family, made.particles, MCMC(draws=150, warmup=150, chains=2), key=key, given=first, start=first)
    mode = em.shared["map"].ravel()
    for other in (svi, hmc):
        mean = other.shared["map"].mean((0, 1)).ravel()
        assert np.linalg.norm(mean - mode) < 0.01 * np.linalg.norm(mode)
    component = em.shared["components"].ravel()
    maps = hmc.shared["map"].reshape(2, 150, -1)
    moved = aligned(hmc.shared["components"].reshape(2, 150, -1), component)
    # the component's law is skew, its mode not its mean
    for name, point, draws, skew in (("map", mode, maps, 0.0), ("component", component, moved, 0.1)):
        error = 1 / np.sqrt(np.median(effective_sample_size(draws)))
        off = np.sqrt(np.mean(((draws.mean((0, 1)) - point) / draws.std((0, 1))) ** 2))
        assert off < 3 * error + skew, (name, off, error)
    between = aligned(svi.shared["components"].reshape(*svi.shared["components"].shape[:2], -1), component).mean((0, 1))
    cosine = between @ component / np.linalg.norm(between) / np.linalg.norm(component)
    assert cosine > 0.97, cosine
    evidence = [p.local["log_evidence"].mean() for p in (em, svi, hmc)]
    assert max(evidence) - min(evidence) < 0.1, evidence
