"""Bodies that turn: the volume, the likelihood, the sums and the steps agree with references that know no views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated
from test_em import FIXED, Double

from hetmodels.data.phantom import phantom
from hetmodels.errors import DataError, UsageError
from hetmodels.families import Multibody
from hetmodels.families.protocol import Frame, Moving, framed, shown
from hetmodels.imaging import accumulate
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.rotations import from_rotvec
from hetmodels.local import component_lattice
from hetmodels.model import Observed, image_ratio, render
from hetmodels.moving import view_slices, views_of
from hetmodels.observation import Contrast, Refined
from hetmodels.testing import check_family, check_volume
from hetmodels.volumes.gaussians import Gaussians
from hetmodels.volumes.parts import MovedParts
from inference import moving_step
from inference.em import EM
from inference.engine import run
from inference.expectation import Mode

SIZE, PIXEL = 12, 12.0


def halves(size):
    """A soft mask of the half space x > 0."""
    x = np.arange(size) - size // 2
    return np.broadcast_to(1 / (1 + np.exp(-1.5 * x)), (1, size, size, size)).astype(np.float32)


def test_it_is_a_family():
    family = Multibody(supports=halves(8), nodes=3, axis=(0.0, 0.0, 1.0))
    assert isinstance(family, Moving)
    check_family(family, size=8, spacing=10.0)


@pytest.mark.slow
def test_moved_parts_are_a_volume_and_move_as_told():
    """Two Gaussians as voxels, turned and shifted, are the Gaussians at the places where the motion takes them."""
    centres, size, spacing = jnp.array([[10.0, 0.0, 4.0], [-8.0, 6.0, 0.0]]), 16, 4.0
    one = [Gaussians(c[None], jnp.ones(1), jnp.full(1, 5.0)) for c in centres]
    turns, shifts = from_rotvec(jnp.array([[0.3, -0.5, 0.4], [0.0, 0.0, 0.0]])), jnp.array([[3.0, -2, 5], [0, 0, 0]])
    maps = jnp.stack([g.density(size, spacing) for g in one])
    volume = MovedParts(maps, jnp.array([1.0, 0.5]), turns, shifts, spacing, order=1)
    check_volume(volume, size=size, spacing=spacing, tolerance=0.01)
    moved = jnp.einsum("lij,lj->li", turns, centres) + shifts
    expected = Gaussians(moved, jnp.array([1.0, 0.5]), jnp.full(2, 5.0)).density(size, spacing)
    assert np.abs(volume.density(size, spacing) - expected).max() < 0.05 * expected.max()


@pytest.fixture(scope="module")
def bodies():
    """A small set in double precision, a family with an angle about one axis, and shared values at random."""
    data = simulated(n=30, size=SIZE, pixel=PIXEL, snr=0.5, states=2, contrast_sd=0.1)
    task = problem(
        data.particles, Multibody(supports=halves(SIZE), nodes=3, axis=(0.0, 0.0, 1.0), turn=0.4), contrast=Contrast()
    )
    ball, rng = Ball(SIZE), np.random.default_rng(0)
    with jax.enable_x64(True):
        batch = next(iter(Double(task).batches(0, jax.random.key(0), 64)))
        maps = ball.filter(jnp.asarray(rng.normal(size=(2, SIZE, SIZE, SIZE))), jnp.full(ball.shells, 0.3))
        noise = jnp.full((1, task.observation.disc.shells), 0.8)
        shared = {"maps": maps, "maps_tau2": jnp.ones(ball.shells), "weights": jnp.array([0.2, 0.5, 0.3])}
    return task, batch, shared, noise


def seen_one_by_one(task, batch, shared, noise):
    """log p(y) - log p(y | reference noise) from the images at every node, by the family's volumes."""
    data, (nodes, log_weights) = Observed(batch, task.observation, noise, None), task.family.grids(shared)
    each = jnp.stack([image_ratio(data, render(task.family.volume(shared, z), data, {})) for z in nodes])
    return batch.weight @ jax.scipy.special.logsumexp(each + log_weights[:, None], axis=0)


def test_the_sums_are_the_gradient_of_the_likelihood(bodies):
    """Fisher's identity: the back-projected residual is the gradient, adjoint, phases and masks included."""
    task, batch, shared, noise = bodies
    family, lattice = task.family, component_lattice(task.family)
    with jax.enable_x64(True):
        oracle = jax.jit(jax.value_and_grad(lambda m: seen_one_by_one(task, batch, shared | {"maps": m}, noise)))
        value, gradient = oracle(shared["maps"])
        table = lattice.table(shown(family, shared))
        total, ratio = moving_step.empty(lattice, 1, 2), 0.0
        mode = Mode(task.observation, lattice, False, "posterior", ((0, 0), (1, 1)))
        for cells, values, sums in moving_step.expected(mode, family, (shared, noise, None), table, batch, 1.0):
            total, ratio = accumulate.add(lattice, total, cells, values), ratio + float(sums.log_ratio)
        columns = accumulate.table(total, 3).reshape(2, lattice.rows, 3)
        found = family.masks(shared) * lattice.adjoint(jnp.concatenate([columns[..., 0], columns[..., 1]]).T)
    assert abs(ratio - float(value)) < 1e-6 * abs(ratio)
    assert np.abs(found - gradient).max() < 1e-6 * np.abs(gradient).max()


def test_log_posterior_never_falls(bodies):
    with jax.enable_x64(True):
        engine = EM(iterations=10, solver_steps=2, anneal=0, **FIXED)
        value = np.array([r["objective"] for r in run(engine, Double(bodies[0]), key=jax.random.key(0)).trace])
    assert len(value) == 10 and np.all(np.diff(value) > 0)


def test_views_that_nodes_share_are_computed_once(bodies):
    """Also where the nodes are not known when traced, and no two views are known to be equal."""
    task, batch, shared, noise = bodies
    views = views_of(task.family, shared)
    assert views.counts == (1, 3) and len(views.pairs) == 4 + 3
    apart = jax.eval_shape(lambda s: views_of(_Traced(task.family, s["scale"]), s), shared | {"scale": jnp.ones(())})
    assert apart.counts == (3, 3) and len(apart.pairs) == 9


class _Traced:
    """The family with nodes that depend on a shared value."""

    def __init__(self, family, scale):
        self.inner, self.scale = family, scale

    def grids(self, shared):
        nodes, log_weights = self.inner.grids(shared)
        return self.scale * nodes, log_weights

    def design(self, z):
        return self.inner.design(z)


@pytest.mark.slow
def test_slices_of_views_are_those_of_the_exact_transform():
    """Against sums over voxels in float64: sum_r V(r) exp(-2 pi i k.(A (Q r + t))) of a smooth map."""
    family = framed(
        Multibody(supports=halves(SIZE), nodes=3, axis=(0.2, 1.0, 0.5), turn=0.3),
        Frame(SIZE, PIXEL, (1.0,) * 6),
    )
    density = np.asarray(phantom(1, SIZE, PIXEL)[0].density(SIZE, PIXEL), np.float64)
    task = problem(simulated(n=8, size=SIZE, pixel=PIXEL).particles, family)
    obs, batch = task.observation, task.batch(np.arange(4))
    shared = {"maps": jnp.asarray(np.stack([density, density]), jnp.float32), "weights": jnp.ones(3) / 3}
    views, lattice = views_of(family, shared), component_lattice(family)
    seen = shown(family, shared)
    found, _, _ = view_slices(lattice, lattice.table(seen), batch, obs, views)
    line = (np.arange(SIZE) - SIZE // 2) * PIXEL
    place = np.stack(np.meshgrid(line, line, line, indexing="ij")[::-1], -1).reshape(-1, 3)
    points = np.asarray(obs.disc.grid(PIXEL).points, np.float64)
    for v, owner in enumerate(views.owner):
        moved = place @ np.asarray(views.rotation[v], np.float64).T + np.asarray(views.shift[v], np.float64)
        at = moved @ np.asarray(batch.rotation[1], np.float64).T
        exact = np.exp(-2j * np.pi * points @ at[:, :2].T) @ np.asarray(seen[owner], np.float64).ravel() / SIZE
        assert np.linalg.norm(found[1, :, v] - exact) < 0.05 * np.linalg.norm(exact)


def test_what_does_not_fit_is_refused(bodies):
    frame = Frame(SIZE, PIXEL, (1.0,) * 6)
    with pytest.raises(UsageError, match="family.bodies"):
        framed(Multibody(), frame)
    with pytest.raises(UsageError, match="too many to enumerate"):
        framed(Multibody(supports=np.repeat(halves(SIZE), 2, 0)), frame)
    with pytest.raises(DataError, match="12 voxels"):
        framed(Multibody(supports=halves(10)), frame)
    with pytest.raises(ValueError, match="axis"):
        Multibody(axis=(0.0, 0.0, 0.0))
    with pytest.raises(UsageError, match="known poses"):
        problem(bodies[0].particles, bodies[0].family, pose=Refined())


@pytest.mark.slow
def test_the_swing_of_an_arm_is_found():
    """Five angles of an arm: posterior means follow the truth, halves agree, and errors are those claimed."""
    from scipy.ndimage import binary_dilation, gaussian_filter

    states = phantom(5, 16, PIXEL)
    arm = Gaussians(*(leaf[84:] for leaf in (states[2].centres, states[2].weights, states[2].widths)))
    dense = np.asarray(arm.density(16, PIXEL))
    mask = gaussian_filter(binary_dilation(dense > 0.2 * dense.max()).astype(float), 0.7)
    data = simulated(n=600, size=16, pixel=PIXEL, snr=0.3, states=5, volumes=states, seed=1)
    pivot = tuple(np.asarray(states[2].centres[84], float).tolist())
    family = Multibody(supports=mask[None], nodes=9, axis=(0.906, 0.0, -0.423), turn=0.35, pivots=pivot)
    task, engine = problem(data.particles, family, halves=True), EM(anneal=0)
    state = run(engine, task, key=jax.random.key(0)).state
    shared = engine.draw(jax.random.key(0), task, state)
    local = jax.jit(task.infer)(jax.random.key(0), shared, task.batch(np.arange(600)))
    angle, truth = np.asarray(local.mean)[:, 0], np.deg2rad(np.linspace(-35, 35, 5))[data.states]
    slope = np.polyfit(truth, angle, 1)[0]
    assert abs(slope - 1) < 0.1 and np.corrcoef(truth, angle)[0, 1] > 0.9
    spread = np.sqrt(np.asarray(local.covariance)[:, 0, 0])
    assert 0.6 < np.sqrt(np.mean((angle - truth) ** 2)) / np.sqrt(np.mean(spread**2)) < 1.6
    assert np.asarray(state.fsc)[3] > 0.8
