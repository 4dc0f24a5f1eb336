"""The host's and the device's back-projection are the same sums."""

import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.imaging import accumulate
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.slices import Lattice


@pytest.mark.parametrize("order", [0, 1, 3])
def test_host_equals_device(order):
    rng = np.random.default_rng(0)
    lattice, disc = Lattice(12, 1.0, 2, order), Disc(12)
    q, _ = np.linalg.qr(rng.normal(size=(6, 3, 3)))
    cells = lattice.cells(jnp.asarray(q, jnp.float32), disc.grid(1.0).points)
    values = jnp.asarray(rng.normal(size=(6, disc.pixels, 3)), jnp.float32)
    host = accumulate._add_on_host(lattice, np.zeros((lattice.rows, 3)), cells, values)
    host = accumulate._add_on_host(lattice, host, cells, values)
    device = accumulate._add_on_device(lattice, jnp.zeros(3 * lattice.rows), cells, 2 * values)
    assert np.allclose(accumulate.table(host, 3), accumulate.table(device, 3), atol=1e-4)
    assert np.abs(host).sum() > 1


def test_alike_slices_that_stand_together_are_added_as_one():
    rng = np.random.default_rng(1)
    lattice, disc = Lattice(12, 1.0, 2), Disc(12)
    q, _ = np.linalg.qr(rng.normal(size=(4, 3, 3)))
    which = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 0])
    cells = lattice.cells(jnp.asarray(q[which], jnp.float32), disc.grid(1.0).points)
    np.testing.assert_array_equal(accumulate._first_of_alike(cells), [0, 3, 4, 6, 10])
    values = jnp.asarray(rng.normal(size=(11, disc.pixels, 3)), jnp.float32)
    host = accumulate._add_on_host(lattice, np.zeros((lattice.rows, 3)), cells, values)
    device = accumulate._add_on_device(lattice, jnp.zeros(3 * lattice.rows), cells, values)
    assert np.allclose(accumulate.table(host, 3), accumulate.table(device, 3), atol=1e-4)
