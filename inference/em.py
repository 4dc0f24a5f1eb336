"""Expectation-maximisation for linear families: exact E-step over the latents, one volume step per pass.

Per pass: every image's latents are integrated with the maps of the pass (`design_moments`), the expected residual is
back-projected, and the sweep moves the maps (`volume_step`), the noise spectra, the signal spectra and the mixture
weights to better values of the same objective. Half sets, where asked for, are two copies of the maps in one sweep,
coupled only through their Fourier shell correlation, and joined in the last passes.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.protocol import Gaussian, Gridded, need_frame
from hetmodels.imaging import accumulate
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.slices import Cells, Lattice
from hetmodels.local import (
    Design,
    Pairs,
    centred_images,
    component_lattice,
    design_moments,
    mixing_pairs,
    posterior_of,
    shell_statistics,
)
from hetmodels.observation import Observation, split_junk
from hetmodels.tree import pytree
from inference.volume_step import data_precision, volume_step


@pytree
class Sums:
    """What a pass adds up over particles, float64 on the host.

    Attributes:
        log_ratio: sum of log p(y | shared) - log p(y | noise of the reference spectrum).
        occupancy: expected particles per node, (nodes,).
        residual: expected residual power, (groups, shells).
        count: pixels that went into it, (groups, shells).
        junk: expected number of junk images.
        particles: number of images.
    """

    log_ratio: np.ndarray
    occupancy: np.ndarray
    residual: np.ndarray
    count: np.ndarray
    junk: np.ndarray
    particles: np.ndarray


@pytree
class EMState:
    """Where the algorithm stands.

    Attributes:
        maps: (copies, components, N, N, N); two copies while half sets are apart.
        tables: their transforms, (copies * rows, 2 components).
        spectra: prior variance of the maps, (components, shells).
        shared: the family's shared values.
        noise: variance relative to the reference spectrum, (groups, shells).
        junk: share of junk.
        total: back-projection sums of the pass.
        sums: other sums of the pass.
        halves: the last maps of the two half sets while they were apart, (2, components, N, N, N); else empty.
        fsc: Fourier shell correlation of the halves, or the expected one, (shells,).
        objective: value at the start of the last finished pass, per particle.
        gain: its rise over the pass before, per particle.
        passes: finished passes.
        joined: passes since the halves were joined, -1 while they are apart.
    """

    maps: Array
    tables: Array
    spectra: Array
    shared: dict[str, Array]
    noise: Array
    junk: Array
    total: Any
    sums: Sums
    halves: Array
    fsc: Array
    objective: np.ndarray
    gain: np.ndarray
    passes: np.ndarray
    joined: np.ndarray


@dataclasses.dataclass(frozen=True)
class EM:
    """Expectation-maximisation (Dempster 1977; Sigworth 1998, J. Struct. Biol. 122) with exact map updates.

    Attributes:
        iterations: passes over the data at most.
        tolerance: stop when the objective rises by less than this many nats per particle in a pass.
        batch_size: particles per step.
        solver_steps: conjugate-gradient steps of the map update in each pass.
        anneal: passes during which class probabilities are kept soft, so that no class wins by chance.
        learn_spectrum: re-estimate the maps' prior spectrum (from half maps, or by empirical Bayes with the
            posterior variance); otherwise it stays as started.
        learn_noise: re-estimate the noise spectra.
    """

    iterations: int = 25
    tolerance: float = 1e-3
    batch_size: int = 500
    solver_steps: int = 4
    anneal: int = 8
    learn_spectrum: bool = True
    learn_noise: bool = True

    whole = False
    shuffle = False

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch_size < 1 or self.solver_steps < 1:
            raise ValueError(f"EM: iterations, batch_size and solver_steps must be at least 1, got {self!r}.")

    @classmethod
    def lacks(cls, model: Any) -> str | None:
        """EM needs components, spectra, design and updated: the Linear protocol."""
        missing = [name for name in ("components", "spectra", "design", "updated") if not hasattr(model, name)]
        if not missing:
            return None
        name = getattr(model, "__name__", type(model).__name__)
        return f"em needs a linear family; {name} has no {', '.join(missing)} (protocol Linear)."

    def passes(self, problem: Any) -> int:
        """Iterations, and three more to join half sets."""
        return self.iterations + (3 if problem.halves else 0)

    def init(self, key: Array, problem: Any) -> EMState:
        """Start from given maps, or from zero maps (then the first pass is a plain reconstruction)."""
        family, obs = problem.family, problem.observation
        shared = problem.starting(key)
        noise, junk = shared.pop("noise"), shared.pop("junk", jnp.zeros(()))
        copies = 2 if problem.halves else 1
        lattice = component_lattice(family)
        components = family.components(shared) * (1.0 if problem.started else 0.0)
        maps = jnp.broadcast_to(components, (copies, *components.shape))
        spectra = family.spectra(shared)
        if not problem.started:
            shared = family.updated(shared, components, spectra, jnp.ones(_nodes(family, shared)))
        return EMState(
            maps,
            _tables(lattice, maps),
            spectra,
            shared,
            noise,
            junk,
            accumulate.empty(lattice, copies, _columns(len(components), mixing_pairs(family, shared))),
            _no_sums(obs.groups, obs.disc.shells, _nodes(family, shared)),
            maps if problem.halves else maps[:0],
            jnp.zeros(obs.disc.shells),
            np.asarray(-np.inf),
            np.asarray(np.inf),
            np.asarray(0),
            np.asarray(-1 if problem.halves else 0),
        )

    def step(self, key: Array, problem: Any, state: EMState, batch: Batch) -> tuple[EMState, dict[str, Any]]:
        """E-step of a batch and its share of the back-projections."""
        family, obs = problem.family, problem.observation
        lattice, nodes = component_lattice(family), _nodes(family, state.shared)
        assignment = self._assignment(problem, int(state.passes), nodes)
        mode = _Mode(obs, lattice, len(state.maps) > 1, assignment, mixing_pairs(family, state.shared))
        junk = state.junk if obs.outliers is not None else None
        target = 1 + (0.75 * nodes - 1) * max(0.0, 1 - int(state.passes) / max(self.anneal, 1))
        cells, images, slices = _look(mode, state.tables, batch)
        known, view = (state.shared, state.noise, junk), (cells.sign, images, slices)
        values, sums = _expect(mode, family, known, batch, view, target, jax.random.fold_in(key, 1))
        total = accumulate.add(lattice, state.total, cells, values)
        sums = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), state.sums, sums)
        return dataclasses.replace(state, total=total, sums=sums), {}

    def _assignment(self, problem: Any, passes: int, nodes: int) -> str:
        """How nodes are assigned in this pass: at random to break the symmetry, softly, or by their posterior."""
        if nodes == 1 or passes >= self.anneal:
            return "posterior"
        return "soft" if passes > 0 or problem.started else "random"

    def sweep(self, key: Array, problem: Any, state: EMState) -> tuple[EMState, dict[str, Any]]:
        """M-step: maps, spectra, noise, mixture weights."""
        family, obs = problem.family, problem.observation
        lattice, ball = component_lattice(family), Ball(need_frame(family).size)
        count, pairs = state.maps.shape[1], mixing_pairs(family, state.shared)
        sums = accumulate.table(state.total, _columns(count, pairs))
        sums = sums.reshape(len(state.maps), lattice.rows, -1)
        maps, precision = [], []
        for maps_, columns in zip(state.maps, sums, strict=True):
            weights = _weights(columns[:, 2 * count :], count, pairs)
            maps.append(volume_step(lattice, maps_, columns[:, : 2 * count], weights, state.spectra, self.solver_steps))
            diagonal = weights if weights.ndim == 2 else jnp.diagonal(weights, axis1=1, axis2=2)
            precision.append(jnp.stack([data_precision(lattice, h) for h in diagonal.T]))
        new_maps, precision = jnp.stack(maps), jnp.stack(precision)
        objective = self._objective(ball, state, precision)
        fsc = _correlation(ball, new_maps, precision, state.spectra)
        spectra = state.spectra
        if self.learn_spectrum and (int(state.joined) < 0 or not problem.halves):
            spectra = _spectra(ball, new_maps, precision, state.spectra, fsc)
        noise = _noise(ball, state, precision, obs) if self.learn_noise else state.noise
        junk = state.junk if obs.outliers is None else _junk(state.sums, obs)
        joined, halves = int(state.joined), new_maps if len(new_maps) == 2 else state.halves
        gain = objective - float(state.objective)
        passes = int(state.passes) + 1
        if joined >= 0:
            joined += 1
        elif passes >= self.iterations or (gain < self.tolerance and passes > 2):
            new_maps, joined = new_maps.mean(0, keepdims=True), 0
        occupancy = jnp.asarray(state.sums.occupancy, jnp.float32)
        shared = family.updated(state.shared, new_maps.mean(0), spectra, occupancy)
        state = EMState(
            new_maps,
            _tables(lattice, new_maps),
            spectra,
            shared,
            noise,
            junk,
            accumulate.empty(lattice, len(new_maps), _columns(count, pairs)),
            jax.tree.map(np.zeros_like, state.sums),
            halves,
            fsc if state.maps.shape[0] > 1 or not problem.halves else state.fsc,
            np.asarray(objective),
            np.asarray(gain),
            np.asarray(passes),
            np.asarray(joined),
        )
        return state, _report(state, problem)

    def finished(self, state: EMState) -> bool:
        """Whether the objective has stalled, and joined halves have settled."""
        stalled = bool(state.gain < self.tolerance) and bool(state.passes > self.anneal or len(state.spectra) == 1)
        return bool(state.joined != -1 and state.joined != 1 and state.passes > 2 and stalled)

    def draw(self, key: Array, problem: Any, state: EMState) -> dict[str, Array]:
        """The point estimate of the shared values."""
        extra = {"junk": state.junk} if problem.observation.outliers is not None else {}
        return state.shared | {"noise": state.noise} | extra

    def state_bytes(self, family: Any, size: int, halves: bool) -> int:
        """Memory of the state: maps, their tables and the sums, for images of `size` pixels."""
        count = getattr(family, "classes", None) or 1 + getattr(family, "dims", 0)
        rows = Lattice(size, 1.0, 2, getattr(family, "order", 1)).rows
        columns = 2 * count + (count * (count + 1) // 2 if isinstance(family, Gaussian) else count)
        return (2 if halves else 1) * (rows * (2 * count * 8 + columns * 12) + 12 * count * size**3)

    def extra(self, problem: Any, state: EMState) -> dict[str, np.ndarray]:
        """Half maps and their correlation, where half sets were kept apart."""
        found = {"fsc": np.asarray(state.fsc)}
        return found | ({"half_maps": np.asarray(state.halves)} if problem.halves else {})

    def _objective(self, ball: Ball, state: EMState, precision: Array) -> float:
        """Log posterior per particle; with a learnt spectrum, the evidence with the maps integrated (diagonal Laplace)."""
        prior = 1 / jnp.maximum(state.spectra, 1e-30)[:, ball.shell]
        half = ball.multiplicity
        power = jnp.abs(ball.transform(state.maps)) ** 2
        total = -0.5 * jnp.sum(power * prior * half)
        if self.learn_spectrum:
            total -= 0.5 * jnp.sum(jnp.log1p(precision / prior) * half)
        else:
            total += 0.5 * len(state.maps) * jnp.sum(jnp.log(prior) * half)
        return (float(state.sums.log_ratio) + float(total)) / float(state.sums.particles)


def _nodes(family: Any, shared: Any) -> int:
    return len(family.grids(shared)[1]) if isinstance(family, Gridded) else 1


def _columns(count: int, pairs: Pairs) -> int:
    """Real columns of the sums: residuals, and one weight per pair of components that mix."""
    return 2 * count + len(pairs)


def _weights(columns: Array, count: int, pairs: Pairs) -> Array:
    """H as the solver wants it, from the accumulated columns."""
    if len(pairs) == count:
        return columns
    i, j = np.array(pairs).T
    full = jnp.zeros((len(columns), count, count)).at[:, i, j].set(columns)
    return full.at[:, j, i].set(columns)


def _no_sums(groups: int, shells: int, nodes: int) -> Sums:
    zero = np.zeros
    return Sums(zero(()), zero(nodes), zero((groups, shells)), zero((groups, shells)), zero(()), zero(()))


@partial(jax.jit, static_argnums=0)
def _tables(lattice: Lattice, maps: Array) -> Array:
    """Tables of all copies one below the other, (copies * rows, 2 components)."""
    return jnp.concatenate([lattice.table(m) for m in maps])


@dataclasses.dataclass(frozen=True)
class _Mode:
    """What of the E-step is compiled in."""

    observation: Observation
    lattice: Lattice
    halves: bool
    assignment: str
    pairs: Pairs


@partial(jax.jit, static_argnums=0)
def _look(mode: _Mode, tables: Array, batch: Batch) -> tuple[Cells, Array, Array]:
    """Where the pixels fall, the centred images, and the component slices.

    Compiled apart from `_expect`: in one program XLA repeats the gathers in every use of the slices.
    """
    obs, lattice = mode.observation, mode.lattice
    cells = lattice.cells(batch.rotation, obs.disc.grid(obs.spacing).points, batch.stretch)
    if mode.halves:
        cells = dataclasses.replace(cells, base=cells.base + (batch.half * lattice.rows)[:, None])
    return cells, centred_images(batch, obs), lattice.gather(tables, cells)


@partial(jax.jit, static_argnums=0)
def _expect(mode: _Mode, family: Any, known: tuple, batch: Batch, view: tuple, target: float, key: Array) -> tuple[Array, Sums]:
    """E-step of a batch: what its pixels add, and the other sums."""
    obs, (shared, noise, junk), (sign, images, slices) = mode.observation, known, view
    variance = obs.pixel_variance(noise, batch.group)
    found = shell_statistics(images, slices, batch.ctf, obs.disc, mode.pairs)
    assign = {
        "posterior": posterior_of,
        "soft": lambda joint: _softened(joint, batch.weight, target),
        "random": lambda joint: _random(joint, key),
    }[mode.assignment]
    design = design_moments(family, shared, *found.weighted(noise[batch.group]), obs.contrast, assign)
    ratio, clean = split_junk(design.log_ratio, obs, batch, variance, junk)
    weight = batch.weight * clean
    first, second = design.first * weight[:, None], design.second * weight[:, None, None]
    i, j = np.array(mode.pairs).T
    if len(mode.pairs) == first.shape[1]:
        model = slices * second[:, None, i, i]
    else:
        model = jnp.einsum("bml,bln->bmn", slices, second)
    scale = (2 * batch.ctf / variance)[..., None]
    residual = scale * (images[..., None] * first[:, None, :] - batch.ctf[..., None] * model)
    curvature = scale * batch.ctf[..., None] * second[:, None, i, j]
    values = jnp.concatenate([residual.real, residual.imag * sign[..., None], curvature], axis=-1)
    weighted = dataclasses.replace(found, power=found.power * weight[:, None])
    power = weighted.expected_power(first, second)
    zero = obs.zero_ratio(batch.images, variance)
    return values, _sums(obs, batch, design, ratio + zero, weight, power)


def _random(joint: Array, key: Array) -> Array:
    """Every image to one node, evenly and at random."""
    return jax.nn.one_hot(jax.random.randint(key, (len(joint),), 0, joint.shape[1]), joint.shape[1])


def _softened(joint: Array, weight: Array, target: Array) -> Array:
    """Node probabilities raised to 1/T, with T such that their mean effective number reaches the target."""

    def number(log_t: Array) -> Array:
        p = jax.nn.softmax(joint * jnp.exp(-log_t), axis=1)
        return jnp.sum(weight / jnp.sum(p**2, axis=1)) / jnp.maximum(jnp.sum(weight), 1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (bounds[0] + bounds[1]) / 2
        low = number(middle) < target
        return jnp.where(low, middle, bounds[0]), jnp.where(low, bounds[1], middle)

    _, high = jax.lax.fori_loop(0, 20, halve, (jnp.zeros(()), jnp.asarray(8.0)))
    return jax.nn.softmax(joint * jnp.exp(-high), axis=1)


def _sums(obs: Observation, batch: Batch, design: Design, ratio: Array, weight: Array, power: Array) -> Sums:
    one_hot = jax.nn.one_hot(batch.group, obs.groups)
    counts = jnp.asarray(obs.disc.shell_counts, power.dtype)
    return Sums(
        jnp.sum(ratio * batch.weight),
        weight @ design.responsibilities,
        one_hot.T @ power,
        jnp.outer(one_hot.T @ weight, counts),
        jnp.sum(batch.weight - weight),
        jnp.sum(batch.weight),
    )


def _correlation(ball: Ball, maps: Array, precision: Array, spectra: Array) -> Array:
    """FSC of the half maps; without halves the one expected of them, SSNR/(SSNR + 2), first component."""
    if len(maps) == 2:
        a, b = ball.transform(maps[:, 0])
        cross = ball.shell_sum((jnp.conj(a) * b).real)
        norm = jnp.sqrt(ball.shell_sum(jnp.abs(a) ** 2) * ball.shell_sum(jnp.abs(b) ** 2))
        return cross / jnp.maximum(norm, 1e-30)
    ssnr = spectra[0] * ball.shell_sum(precision[0].mean(0)) / jnp.maximum(ball.degrees, 1)
    return ssnr / (ssnr + 2)


def _spectra(ball: Ball, maps: Array, precision: Array, spectra: Array, fsc: Array) -> Array:
    """Signal spectra: FSC/(1-FSC) over the data's precision, or the mean of |V^|^2 plus the posterior variance."""
    if len(maps) == 2 and maps.shape[1] == 1:
        clipped = jnp.clip(fsc, 1e-3, 0.999)
        data = ball.shell_sum(precision.mean((0, 1))) / jnp.maximum(ball.degrees, 1)
        return (clipped / (1 - clipped) / jnp.maximum(data, 1e-20))[None]
    variance = 1 / (precision + 1 / jnp.maximum(spectra, 1e-30)[:, ball.shell])
    mean = ball.shell_sum(jnp.abs(ball.transform(maps)) ** 2 + variance) / np.maximum(ball.degrees, 1)
    return jnp.maximum(mean.mean(0), 1e-12)


def _noise(ball: Ball, state: EMState, precision: Array, obs: Observation) -> Array:
    """Expected residual power per pixel; the maps' own degrees of freedom do not count."""
    residual, count = jnp.asarray(state.sums.residual), jnp.asarray(state.sums.count)
    prior = 1 / jnp.maximum(state.spectra, 1e-30)[:, ball.shell]
    used = 0.5 * ball.shell_sum(precision / (precision + prior)).sum((0, 1))[: obs.disc.shells]
    share = count / jnp.maximum(count.sum(0), 1)
    free = jnp.maximum(count - share * used, 0.5 * count)
    fresh = residual / jnp.maximum(free, 1)
    return jnp.where(count > 0, jnp.maximum(fresh, 1e-4), state.noise)


def _junk(sums: Sums, obs: Observation) -> Array:
    """Mode of the share of junk under its Beta prior."""
    prior = obs.outliers
    assert prior is not None
    top = sums.junk + prior.alpha - 1
    share = (top + 1e-3) / (sums.particles + prior.alpha + prior.beta - 2 + 2e-3)
    return jnp.asarray(np.clip(share, 1e-4, 0.5), jnp.float32)


def _report(state: EMState, problem: Any) -> dict[str, Any]:
    frame = need_frame(problem.family)
    good = np.asarray(state.fsc) > 0.143
    good[0] = True
    shell = len(good) - 1 if good.all() else int(np.argmin(good)) - 1
    return {
        "objective": float(state.objective),
        "resolution": frame.size * frame.spacing / max(shell, 1),
        "occupancy": [float(v) for v in np.atleast_1d(np.asarray(state.shared.get("weights", 1.0)))],
        "junk": float(state.junk),
        "stage": "halves" if len(state.maps) == 2 else "joined" if problem.halves else "full",
    }
