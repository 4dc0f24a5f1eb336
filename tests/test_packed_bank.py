"""Slices shared between images are the slices that each would interpolate for itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_search import PIXEL, batch_of, classes, observation, pose_set, prior_of

from hetmodels import search
from hetmodels.imaging.rotations import uniform
from hetmodels.observation import Contrast
from hetmodels.packed_bank import bank_for
from hetmodels.scoring import Templates
from hetmodels.search import Search, find_poses


@pytest.fixture(scope="module")
def given():
    """Two classes in two copies, images of both copies, and a grid somewhere."""
    values, images, *_ = pose_set(40, 12, 3.0, seed=3)
    obs = observation(12, Contrast(0.2))
    family, shared = classes(np.stack([values, values[::-1]]), [0.6, 0.4])
    templates = Templates.of(family, shared, obs, jnp.ones((1, obs.disc.shells)))
    other = Templates.of(family, {**shared, "maps": shared["maps"][:, :, ::-1]}, obs, templates.noise)
    both = dataclasses.replace(templates, tables=jnp.concatenate([templates.tables, other.tables]))
    batch = batch_of(images, np.ones(images.shape))
    turn = jnp.broadcast_to(uniform(jax.random.key(1), 1), (40, 3, 3))
    return both, batch, prior_of(40), turn, jnp.zeros((40, 2)), jnp.arange(40) % 2


def test_scores_from_a_shared_bank_are_those_of_own_slices(given, monkeypatch):
    how, used = Search(0, 1, 5, PIXEL, PIXEL, kept=11, top=16), []

    def counted(*arguments):
        used.append(bank_for(*arguments))
        return used[-1]

    monkeypatch.setattr(search, "bank_for", counted)
    shared = find_poses(how, *given)
    assert used[0] is not None
    monkeypatch.setattr(search, "bank_for", lambda *arguments: None)
    own = find_poses(how, *given)
    np.testing.assert_allclose(shared.log_evidence, own.log_evidence, atol=1e-3)
    np.testing.assert_allclose(shared.weight, own.weight, atol=1e-3)
    np.testing.assert_allclose(shared.discarded, own.discarded, atol=1e-3)
    clear = own.weight[:, 0] > own.weight[:, 1] + 5e-3
    assert clear.mean() > 0.5
    np.testing.assert_allclose(shared.rotation[clear, 0], own.rotation[clear, 0], atol=1e-6)
    np.testing.assert_allclose(shared.shift[clear, 0], own.shift[clear, 0], atol=1e-6)


def test_no_bank_is_made_of_slices_that_images_do_not_share(given):
    templates, batch, _, turn, _, copy = given
    grid = Search(2, 1, 5, PIXEL, PIXEL).first_grid()
    found = search.Cells.whole(np.arange(4), np.zeros((40, 1, 2), np.float32))
    apart = dataclasses.replace(found, code=np.arange(160).reshape(40, 4))
    assert bank_for(templates, grid, apart, turn, batch, copy, 5) is None
    stretched = dataclasses.replace(batch, stretch=batch.stretch.at[3, 0, 0].set(1.1))
    assert bank_for(templates, grid, found, turn, stretched, copy, 5) is None
    bank = bank_for(templates, grid, found, turn, batch, copy, 5)
    assert bank is not None and bank.place.shape == (2, grid.cells)
