"""Expectation-maximisation for linear families: exact E-step over the latents, one volume step per pass.

Per pass: every image's latents are integrated with the maps of the pass (`design_moments`), the expected residual is
back-projected, and the sweep moves the maps (`volume_step`), the noise spectra, the signal spectra and the mixture
weights to better values of the same objective. Half sets, where asked for, are two copies of the maps in one sweep,
coupled only through their Fourier shell correlation, and joined in the last passes.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.protocol import Gaussian, Gridded, Masked, Moving, mixture_of, need_frame
from hetmodels.imaging import accumulate
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.slices import Cells, Lattice
from hetmodels.imaging.symmetry import symmetrised
from hetmodels.local import Pairs, component_lattice, mixing_pairs
from hetmodels.tree import pytree
from inference import moving_step
from inference.ab_initio import AbInitio, begun
from inference.expectation import Mode, Sums, expect, look, no_sums
from inference.mixture_step import first_gaussians, refitted
from inference.pose_step import advanced, alike, first_table, learned_poses, search_report, weighted_poses
from inference.subspace_start import grown_start
from inference.updates import correlation, expanded, junk_share, matched, noise_spectra, regularised, signal_spectra
from inference.volume_step import certainty, volume_step


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
        first: value at the start of the second pass, per particle.
        gain: what is left to gain, as a part of the rise since then.
        passes: finished passes.
        joined: passes since the halves were joined, -1 while they are apart; from 1 on without halves.
        pending: a batch that is computed but not yet added up, or None.
        poses: where poses are unknown, what is known of them (`PoseTable`); else ().
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
    first: np.ndarray
    gain: np.ndarray
    passes: np.ndarray
    joined: np.ndarray
    pending: tuple[Cells, Array, Sums] | None = None
    poses: Any = ()


@dataclasses.dataclass(frozen=True)
class EM:
    """Expectation-maximisation (Dempster 1977; Sigworth 1998, J. Struct. Biol. 122) with exact map updates.

    Attributes:
        iterations: passes over the data at most.
        tolerance: stop when the maps have no more to gain in the next pass, as a part of the rise of the objective
            since the first pass.
        mixture_tolerance: with latents (classes, components), stop when the objective's rise in a pass falls below
            this part of its rise since the first pass.
        batch_size: particles per step.
        solver_steps: conjugate-gradient steps of the map update in each pass.
        anneal: passes during which class probabilities are kept soft, so that no class wins by chance.
        learn_spectrum: re-estimate the maps' prior spectrum (from half maps, or by empirical Bayes with the
            posterior variance); otherwise it stays as started.
        learn_noise: re-estimate the noise spectra.
        ab_initio: how first maps are found where poses are unknown and no map is given.
    """

    iterations: int = 25
    tolerance: float = 1e-2
    mixture_tolerance: float = 2e-4
    batch_size: int = 500
    solver_steps: int = 4
    anneal: int = 8
    learn_spectrum: bool = True
    learn_noise: bool = True
    ab_initio: AbInitio = AbInitio()  # noqa: RUF009

    whole = False
    shuffle = False
    symmetric = True

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
        problem = begun(key, self, problem)
        family, obs = problem.family, problem.observation
        shared = problem.starting(key)
        noise, junk = shared.pop("noise"), shared.pop("junk", jnp.zeros(()))
        copies = 2 if problem.halves else 1
        lattice, started = component_lattice(family), problem.started
        if isinstance(family, Gaussian) and not _has_components(family, problem, shared):
            shared, started = grown_start(key, self, problem), True
            noise, junk = shared.pop("noise"), shared.pop("junk", junk)
        elif mixture_of(family, shared) is not None:
            shared = first_gaussians(key, problem, shared, noise)
        components = family.components(shared) * (1.0 if started else 0.0)
        components = symmetrised(components, obs.spacing, obs.pose.symmetry)
        maps = jnp.broadcast_to(components, (copies, *components.shape))
        spectra = family.spectra(shared)
        if not started:
            shared = family.updated(shared, components, spectra, jnp.ones(_nodes(family, shared)))
        return EMState(
            maps,
            _tables(lattice, _seen(family, shared, maps)),
            spectra,
            shared,
            noise,
            junk,
            _empty(family, shared, lattice, maps),
            no_sums(obs.groups, obs.disc.shells, _nodes(family, shared), _dims(family)),
            maps if problem.halves else maps[:0],
            jnp.zeros(obs.disc.shells),
            np.asarray(-np.inf),
            np.asarray(0.0),
            np.asarray(np.inf),
            np.asarray(0),
            np.asarray(-1 if problem.halves else 1),
            poses=first_table(problem, components),
        )

    def step(self, key: Array, problem: Any, state: EMState, batch: Batch) -> tuple[EMState, dict[str, Any]]:
        """E-step of a batch and its share of the back-projections."""
        family, obs = problem.family, problem.observation
        lattice, nodes = component_lattice(family), _nodes(family, state.shared)
        assignment = "posterior" if isinstance(family, Gaussian) else self._assignment(state, nodes)
        mode = Mode(obs, lattice, len(state.maps) > 1, assignment, mixing_pairs(family, state.shared))
        junk = state.junk if obs.outliers is not None else None
        target = 1 + (0.75 * nodes - 1) * max(0.0, 1 - int(state.passes) / max(self.anneal, 1))
        known, parts = (state.shared, state.noise, junk), [batch]
        if problem.searches:
            parts, images = weighted_poses(key, mode, family, known, state.tables, batch, state.poses)
            state = dataclasses.replace(state, sums=jax.tree.map(np.add, state.sums, images))
            known = (state.shared, state.noise, None)
        for part in alike(parts, obs.pose.symmetry):
            for cells, values, sums in _expected(mode, family, known, state.tables, part, target, key):
                if problem.searches:
                    sums = dataclasses.replace(sums, log_ratio=np.zeros(()), particles=np.zeros(()))
                # the device is at work on this batch while the host adds up the one before
                state = dataclasses.replace(self.settled(problem, state), pending=(cells, values, sums))
        return state, {}

    def settled(self, problem: Any, state: EMState) -> EMState:
        """The state with the last batch added up."""
        if state.pending is None:
            return state
        cells, values, sums = state.pending
        total = accumulate.add(component_lattice(problem.family), state.total, cells, values)
        sums = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), state.sums, sums)
        return dataclasses.replace(state, total=total, sums=sums, pending=None)

    def _assignment(self, state: EMState, nodes: int) -> str:
        """How nodes are assigned in this pass: at random where all maps are alike, softly, or by their posterior."""
        if nodes == 1 or int(state.passes) >= self.anneal:
            return "posterior"
        alike = int(state.passes) == 0 and bool(jnp.all(state.maps == state.maps[:, :1]))
        return "random" if alike else "soft"

    def sweep(self, key: Array, problem: Any, state: EMState) -> tuple[EMState, dict[str, Any]]:
        """M-step: maps, spectra, noise, mixture weights."""
        state = self.settled(problem, state)
        family, obs = problem.family, problem.observation
        lattice, ball = component_lattice(family), Ball(need_frame(family).size)
        maps, (precision, determined, log_det), promise = self._moved(family, state)
        objective = self._objective(problem, ball, state, log_det)
        if len(maps) == 2 and isinstance(family, Gridded) and not isinstance(family, Moving):
            order = matched(maps, _nodes(family, state.shared))
            maps, precision, determined = (v.at[1].set(v[1, order]) for v in (maps, precision, determined))
        fsc = correlation(ball, maps, precision, state.spectra)
        spectra, noise = state.spectra, state.noise
        if self._learns_spectrum(problem) and (int(state.joined) < 0 or not problem.halves):
            spectra = signal_spectra(ball, maps, precision, determined, fsc)
            maps = regularised(ball, maps, precision, state.spectra, spectra)
        gaussians: dict[str, Array] = {}
        if isinstance(family, Gaussian):
            latent, gaussians = refitted(problem, state.shared, state.sums.latent, self._learns_spectrum(problem))
            if latent is not None:
                maps, spectra = expanded(maps, spectra, latent, _masks(family, state.shared))
        if self.learn_noise and "noise" not in problem.given and bool(jnp.any(state.maps)):  # else signal is left over
            noise = noise_spectra(ball, state.sums, determined, state.noise)
        joined, halves = int(state.joined), maps if len(maps) == 2 else state.halves
        passes = int(state.passes) + 1
        first = objective if passes == 1 else float(state.first)
        left = promise if _alone(state.sums) else objective - float(state.objective)
        poses, settled = advanced(problem, state.poses, fsc)
        enough = passes > 1 + (not _alone(state.sums)) and settled
        gain = left / max(objective - first, 1e-12) if enough else np.inf
        if joined >= 0:
            joined += 1
        elif passes >= self.iterations or self._stalled(gain, state, passes):
            maps, joined = maps.mean(0, keepdims=True), 0
        occupancy = jnp.asarray(state.sums.occupancy, jnp.float32)
        state = EMState(
            maps,
            _tables(lattice, _seen(family, state.shared, maps)),
            spectra,
            family.updated(state.shared, maps.mean(0), spectra, occupancy) | gaussians,
            noise,
            state.junk if obs.outliers is None else junk_share(state.sums, obs),
            _empty(family, state.shared, lattice, maps),
            jax.tree.map(np.zeros_like, state.sums),
            halves,
            fsc if state.maps.shape[0] > 1 or not problem.halves else state.fsc,
            np.asarray(objective),
            np.asarray(first),
            np.asarray(gain),
            np.asarray(passes),
            np.asarray(joined),
            poses=poses,
        )
        return state, _report(state, problem) | search_report(problem, poses)

    def _moved(self, family: Any, state: EMState) -> tuple[Array, tuple[Array, ...], float]:
        """New maps of each copy, how far the data determine them, and the rise that is certain, per particle."""
        lattice, pairs, count = component_lattice(family), mixing_pairs(family, state.shared), state.maps.shape[1]
        masks = _masks(family, state.shared)
        if isinstance(family, Moving):
            maps, known = moving_step.moved(lattice, state.total, state.maps, masks, state.spectra, self.solver_steps)
            return maps, known, np.inf
        sums = accumulate.table(state.total, _columns(count, pairs)).reshape(len(state.maps), lattice.rows, -1)
        found, certain, promise = [], [], 0.0
        for before, columns in zip(state.maps, sums, strict=True):
            residual, weights = columns[:, : 2 * count], columns[:, 2 * count :]
            moved, rise = volume_step(
                lattice, before, residual, weights, state.spectra, self.solver_steps, pairs, masks
            )
            found.append(moved)
            promise += float(rise) / float(state.sums.particles)
            certain.append(certainty(lattice, weights, state.spectra, pairs, masks))
        return jnp.stack(found), tuple(jnp.stack(parts) for parts in zip(*certain, strict=True)), promise

    def finished(self, state: EMState) -> bool:
        """Whether the objective has stalled, and joined halves have settled."""
        return int(state.joined) >= 1 and self._stalled(float(state.gain), state, int(state.passes))

    def _stalled(self, gain: float, state: EMState, passes: int) -> bool:
        if _alone(state.sums):
            return gain < self.tolerance
        return gain < self.mixture_tolerance and (passes > self.anneal or state.sums.occupancy.size == 1)

    def draw(self, key: Array, problem: Any, state: EMState) -> dict[str, Array]:
        """The point estimate of the shared values."""
        extra = {"junk": state.junk} if problem.observation.outliers is not None else {}
        canonical = getattr(problem.family, "canonical", lambda shared: shared)
        return canonical(state.shared) | {"noise": state.noise} | extra | learned_poses(state.poses)

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

    def _learns_spectrum(self, problem: Any) -> bool:
        """Whether the maps' prior spectrum is re-estimated: it was not given."""
        return self.learn_spectrum and not any(name.endswith("tau2") for name in problem.given)

    def _objective(self, problem: Any, ball: Ball, state: EMState, log_det: Array) -> float:
        """Log posterior per particle; with a learnt spectrum, the evidence (maps integrated, diagonal Laplace)."""
        total = _log_prior(ball, self._learns_spectrum(problem), state.maps, state.spectra, log_det)
        return (float(state.sums.log_ratio) + float(total)) / float(state.sums.particles)


def _expected(
    mode: Mode, family: Any, known: tuple, tables: Array, batch: Batch, target: float, key: Array
) -> Iterator[tuple[Cells, Array, Sums]]:
    """The E-step of a batch: where its pixels fall, what they add, and the other sums."""
    if isinstance(family, Moving):
        yield from moving_step.expected(mode, family, known, tables, batch, target)
        return
    cells, images, slices = look(mode, tables, batch)
    view = (cells.sign, images, slices)
    yield cells, *expect(mode, family, known, batch, view, target, jax.random.fold_in(key, 1))


def _seen(family: Any, shared: Any, maps: Array) -> Array:
    """The maps as images show them: masked, where they have masks."""
    masks = _masks(family, shared)
    return maps if masks is None else maps * masks


def _masks(family: Any, shared: Any) -> Any:
    """The masks of the maps, (maps, N, N, N); None if they have none."""
    return family.masks(shared) if isinstance(family, Masked) else None


def _empty(family: Any, shared: Any, lattice: Lattice, maps: Array) -> Any:
    """Back-projection sums of all copies, nothing added up yet."""
    if isinstance(family, Moving):
        return moving_step.empty(lattice, len(maps), maps.shape[1])
    return accumulate.empty(lattice, len(maps), _columns(maps.shape[1], mixing_pairs(family, shared)))


@partial(jax.jit, static_argnums=(0, 1))
def _log_prior(ball: Ball, integrated: bool, maps: Array, spectra: Array, log_det: Array) -> Array:
    """Log prior of the maps, or what they add to the evidence when they are integrated."""
    prior = 1 / jnp.maximum(spectra, 1e-30)[:, ball.shell]
    half = ball.multiplicity
    total = -0.5 * jnp.sum(jnp.abs(ball.transform(maps)) ** 2 * prior * half)
    if integrated:
        return total - 0.5 * jnp.sum(log_det * half)
    return total + 0.5 * len(maps) * jnp.sum(jnp.log(prior) * half)


def _nodes(family: Any, shared: Any) -> int:
    mixture = mixture_of(family, shared)
    if mixture is not None:
        return len(mixture.weights)
    return len(family.grids(shared)[1]) if isinstance(family, Gridded) else 1


def _dims(family: Any) -> int:
    """Coordinates of a Gaussian latent."""
    return family.dims if hasattr(family, "latent_covariance") else 0


def _alone(sums: Sums) -> bool:
    """Whether there are no latents: then the solver knows what is left to gain."""
    return sums.occupancy.size == 1 and sums.latent.shape[-1] == 1


def _has_components(family: Any, problem: Any, shared: Any) -> bool:
    """Whether there are components to start from: with none the latents never leave their prior."""
    return problem.started and bool(jnp.any(family.components(shared)[1:]))


def _columns(count: int, pairs: Pairs) -> int:
    """Real columns of the sums: residuals, and one weight per pair of components that mix."""
    return 2 * count + len(pairs)


@partial(jax.jit, static_argnums=0)
def _tables(lattice: Lattice, maps: Array) -> Array:
    """Tables of all copies one below the other, (copies * rows, 2 components)."""
    return jnp.concatenate([lattice.table(m) for m in maps])


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
