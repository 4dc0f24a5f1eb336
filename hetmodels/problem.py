"""What an engine sees: a model, its data in batches, densities, and the one integration over local latents."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to

from hetmodels.data.batch import Batch
from hetmodels.data.particles import Particles
from hetmodels.errors import UsageError
from hetmodels.families.protocol import Linear, Moving
from hetmodels.imaging.poses import Support
from hetmodels.laplace import Weighted, integrate, maximum
from hetmodels.local import Local, exact_local
from hetmodels.model import Observed, collapsible, generative, image_ratio, observed, per_particle, render
from hetmodels.observation import Observation
from hetmodels.plain import PlainProblem, Sites
from hetmodels.pose_local import searched_local

_DRAWS = 200
_POINTS = 2**17  # Fourier pixels of densities that are evaluated at a time


@dataclasses.dataclass(frozen=True, eq=False)
class ParticleProblem(PlainProblem):
    """A family, or a model function of an observed batch, on a particle set.

    Attributes:
        particles: the data.
        observation: how densities become images.
        family: the family, or None for a model function.
        halves: whether the two half sets are kept apart: their noise groups are numbered on.
        summed: how many poses of each image the model sums over, brought by the batch (`Batch.poses`); 0 where poses
            are known, latents of the model, or the engine's own affair.
    """

    particles: Particles = None  # type: ignore[assignment]
    observation: Observation = None  # type: ignore[assignment]
    family: Any = None
    halves: bool = False
    summed: int = 0

    @staticmethod
    def of(
        model: Any,
        particles: Particles,
        observation: Observation,
        given: Sites | None = None,
        start: Sites | None = None,
        halves: bool = False,
    ) -> "ParticleProblem":
        """The problem of a family or of a model function.

        Raises:
            UsageError: if a family whose parts move is to search poses.
        """
        family = model if hasattr(model, "shared") else None
        if isinstance(family, Moving) and observation.pose.prior():
            raise UsageError(
                f"{type(family).__name__}: its parts move about known poses, and these are {observation.pose!r}. Find "
                "the poses with one map first, and fit the parts at them with pose known."
            )
        function = model if family is None else generative(family)
        across = np.asarray(particles.ctf.stretch)[:, [0, 1], [1, 0]]
        observation = dataclasses.replace(observation, axes_kept=not across.any())
        return ParticleProblem(function, {}, given or {}, start or {}, particles, observation, family, halves)

    def start_sites(self) -> Sites:
        """Values of sites to start from, from shared values where there is a family."""
        if not self.start or self.family is None:
            return self.start
        rest = {name: self.start[name] for name in ("noise", "junk") if name in self.start}
        return self.family.sites(self.start) | rest

    def starting(self, key: Array) -> Sites:
        """Shared values to start from."""
        return self.shared(self.initial(key)) | self.start

    @cached_property
    def training(self) -> np.ndarray:
        """Rows that train: those not held out."""
        return np.flatnonzero(~self.particles.held_out)

    @property
    def size(self) -> int:
        """Number of training particles."""
        return len(self.training)

    def model(self, batch: Any) -> Any:
        """The generative model of a batch, with the given sites fixed.

        Raises:
            UsageError: if poses are to be summed over, and the batch brings none.
        """
        if self.summed and batch.poses is None:
            raise UsageError("the model sums over poses, and the batch brings none: give Batch.poses, see pose_sum.")

        return self._given(lambda: self.function(observed(self.observation, batch)))

    def declared(self, batch: Any) -> None:
        """The part of the model of a family that the particles have in common, with the given sites fixed."""
        self._given(lambda: (self._need_family("declared").shared(), observed(self.observation, batch)))

    def _given(self, model: Callable[[], Any]) -> Any:
        return handlers.substitute(handlers.condition(model, data=self.given), data=self.given)()

    def batch(self, index: np.ndarray, size: int | None = None) -> Batch:
        """The given rows, padded to `size` with weight 0."""
        return self._grouped(next(iter(self.particles.batches(np.asarray(index), size or len(index)))))

    def whole(self) -> Batch:
        """All training particles in one batch."""
        return self._whole

    @cached_property
    def _whole(self) -> Batch:
        return self.batch(self.training)

    def example(self) -> Batch:
        """A few rows; their poses to sum over, where there are any, are empty."""
        batch = self.batch(self.training[:2])
        if not self.summed:
            return batch
        rows = len(batch.weight)
        none = jnp.zeros((rows, self.summed, 3, 3)), jnp.zeros((rows, self.summed, 2))
        return dataclasses.replace(batch, poses=Support(*none, jnp.full((rows, self.summed), -jnp.inf)))

    def batches(self, pass_: int, key: Array, size: int = 0, shuffle: bool = False) -> Iterator[Batch]:
        """Training particles, in file order or shuffled anew each pass, the last batch padded with weight 0."""
        order = self.training
        if shuffle:
            order = order[np.asarray(jax.random.permutation(jax.random.fold_in(key, pass_), len(order)))]
        for batch in self.particles.batches(order, min(size, len(order)) or len(order)):
            yield self._grouped(batch)

    def every(self, size: int) -> Iterator[Batch]:
        """All particles, held-out ones included, in file order."""
        for batch in self.particles.batches(np.arange(len(self.particles)), min(size, len(self.particles))):
            yield self._grouped(batch)

    def _grouped(self, batch: Batch) -> Batch:
        if not self.halves:
            return batch
        groups = self.observation.groups // 2
        return dataclasses.replace(batch, group=batch.group + groups * batch.half)

    def shared(self, x: Sites) -> dict[str, Array]:
        """Shared values by name, from unconstrained sites: what the family returns, the noise, the share of junk."""

        def declare() -> dict[str, Array]:
            data = observed(self.observation, self.example())
            extra = {"noise": data.noise} | ({} if data.junk is None else {"junk": data.junk})
            return (self.family.shared() if self.family is not None else {}) | extra

        fixed = handlers.substitute(declare, data=self.given | self.constrained(x))
        with handlers.block():
            return handlers.seed(fixed, jax.random.key(0))()

    def observed(self, shared: dict[str, Array], batch: Batch) -> Observed:
        """A batch with its measurement at given shared values."""
        return Observed(batch, self.observation, shared["noise"], shared.get("junk"))

    def log_joint(self, shared: dict[str, Array], z: Any, poses: Sites, batch: Batch) -> Array:
        """log p(y, z, pose | shared) - log p(y | noise only) per row, the contrast and junk integrated.

        Args:
            shared: shared values, `noise` among them.
            z: latents with leading axis rows (array, dict or None).
            poses: the pose object's latents, leading axis rows; {} for known poses.
            batch: the particles.
        """
        family = self._need_family("log_joint")
        prior = family.conformation(shared)
        if prior is None:
            volume, log_prior = family.volume(shared, None), 0.0
        else:
            volume = per_particle(lambda z: family.volume(shared, z), z)
            log_prior = (
                sum(jax.vmap(law.log_prob)(z[name]) for name, law in _named(prior).items())
                if isinstance(prior, dict)
                else jax.vmap(prior.log_prob)(z)
            )
        for name, law in self.observation.pose.prior().items():
            log_prior = log_prior + jax.vmap(law.log_prob)(poses[name])
        data = self.observed(shared, batch)
        return log_prior + image_ratio(data, render(volume, data, poses))

    def simulate(self, key: Array, shared: dict[str, Array], batch: Batch) -> tuple[Batch, Any, Sites]:
        """New images of the rows of a batch (their CTF and file poses), with the latents they were drawn with."""
        family = self._need_family("simulate")
        rows = len(batch.weight)
        key_z, key_p, key_a, key_n = jax.random.split(key, 4)
        prior, laws = family.conformation(shared), self.observation.pose.prior()
        z = (
            None
            if prior is None
            else jax.tree.map(
                lambda law: law.sample(key_z, (rows,)), prior, is_leaf=lambda law: isinstance(law, dist.Distribution)
            )
        )
        poses = {name: law.sample(jax.random.fold_in(key_p, i), (rows,)) for i, (name, law) in enumerate(laws.items())}
        volume = family.volume(shared, None) if prior is None else per_particle(lambda z: family.volume(shared, z), z)
        data = self.observed(shared, batch)
        model = render(volume, data, poses)
        if self.observation.contrast is not None:
            model = model * (1 + self.observation.contrast.sd * jax.random.normal(key_a, (rows, 1)))
        real, imaginary = jax.random.normal(key_n, (2, *model.shape))
        noise = jnp.sqrt(data.variance / 2) * (real + 1j * imaginary)
        return dataclasses.replace(batch, images=(model + noise).astype(batch.images.dtype)), z, poses

    def infer(
        self, key: Array, shared: dict[str, Array], batch: Batch, proposal: Any = None, draws: int = _DRAWS
    ) -> Local:
        """Integrate every particle's latents and pose with the shared values given.

        Exact where the family is linear with enumerated or Gaussian latents, unknown poses being searched (then not
        under jit); otherwise importance sampling about the Laplace approximation, or about `proposal`.

        Args:
            key: random key, used only where it samples.
            shared: shared values, `noise` among them.
            batch: the particles.
            proposal: means (rows, dims) and precisions (rows, dims, dims) of unconstrained latents to sample about.
            draws: draws per particle where it samples.
        """
        family, obs = self._need_family("infer"), self.observation
        if not (self.searches or collapsible(family, shared, obs)):
            return self._sampled(key, shared, batch, proposal, draws)
        integral = searched_local if self.searches else exact_local
        return integral(family, shared, batch, obs, shared["noise"], shared.get("junk"))

    @property
    def searches(self) -> bool:
        """Whether poses are searched: unknown, of a linear family."""
        return hasattr(self.observation.pose, "refresh") and isinstance(self.family, Linear)

    def rows_at_once(self, draws: int = _DRAWS) -> int:
        """Particles whose latents are integrated in a batch: many where that is exact, else as memory allows."""
        if self.searches or isinstance(self.family, Linear):
            return 500
        return max(1, min(500, _POINTS // (draws * self.observation.disc.pixels)))

    def row_density(self, shared: dict[str, Array]) -> tuple[Array, Callable, Callable]:
        """One particle's latents and pose as unconstrained numbers u, with the shared values given.

        Returns:
            A vector of the form of u; (u, row of a batch) to the log joint density; u to latents, pose, log Jacobian.

        Raises:
            UsageError: if there is no family.
        """
        family = self._need_family("row_density")
        laws = _named(family.conformation(shared)) | {f"pose_{k}": v for k, v in self.observation.pose.prior().items()}
        example = {name: jnp.zeros(law.event_shape) for name, law in laws.items()}
        flat, unravel = ravel_pytree(example)

        def split(u: Array) -> tuple[Any, Sites, Array]:
            raw, log_det, out = unravel(u), jnp.zeros(()), {}
            for name, law in laws.items():
                transform = biject_to(law.support)
                out[name] = transform(raw[name])
                log_det = log_det + jnp.sum(transform.log_abs_det_jacobian(raw[name], out[name]))
            poses = {name[5:]: v for name, v in out.items() if name.startswith("pose_")}
            named = {name: v for name, v in out.items() if not name.startswith("pose_")}
            return named["z"] if set(named) == {"z"} else (named or None), poses, log_det

        def row(u: Array, one: Batch) -> Array:
            z, poses, log_det = split(u)
            single = partial(jax.tree.map, lambda leaf: leaf[None])
            return self.log_joint(shared, single(z), single(poses), single(one))[0] + log_det

        return flat, row, split

    def _sampled(self, key: Array, shared: dict[str, Array], batch: Batch, proposal: Any, draws: int) -> Local:
        flat, row, split = self.row_density(shared)
        at_once = max(1, _POINTS // self.observation.disc.pixels)

        def each(key: Array, one: Batch, about: tuple[Array, Array] | None) -> Weighted:
            if not len(flat):
                return Weighted(flat[None], jnp.ones(1), row(flat, one), jnp.zeros(()))
            centre, precision = maximum(lambda u: row(u, one), flat) if about is None else about
            return integrate(key, lambda u: row(u, one), centre, precision, draws, at_once)

        keys = jax.random.split(key, len(batch.weight))
        return self._summary(jax.vmap(each)(keys, batch, proposal), split, shared, batch)

    def _summary(self, posterior: Weighted, split: Callable, shared: dict[str, Array], batch: Batch) -> Local:
        def each(draws: Array, weights: Array, rotation: Array, shift: Array) -> tuple[Array, ...]:
            z, poses, _ = jax.vmap(split)(draws)
            latents = (
                jnp.zeros((len(draws), 0))
                if z is None
                else jnp.concatenate([leaf.reshape(len(draws), -1) for leaf in jax.tree.leaves(z)], axis=1)
            )
            mean = weights @ latents
            spread = (latents - mean).T @ (weights[:, None] * (latents - mean))
            spread = spread / jnp.maximum(1 - weights @ weights, 0.5)  # few draws lie nearer to their own mean
            place = lambda p: self.observation.pose.place(p, rotation, shift)  # noqa: E731
            turned, moved = jax.vmap(place)(poses) if poses else (rotation[None], shift[None])
            share = weights if poses else jnp.ones(1)
            u, _, vt = jnp.linalg.svd(jnp.einsum("n,nij->ij", share, turned))
            return mean, spread, u @ jnp.diag(jnp.array([1.0, 1.0, jnp.linalg.det(u @ vt)])) @ vt, share @ moved

        mean, spread, rotation, shift = jax.vmap(each)(posterior.draws, posterior.weights, batch.rotation, batch.shift)
        zero = self.observation.zero_ratio(batch.images, self.observed(shared, batch).variance)
        rows = len(batch.weight)
        return Local(
            mean,
            spread,
            jnp.ones((rows, 1)),
            jnp.ones(rows),
            jnp.zeros(rows),
            rotation,
            shift,
            posterior.log_evidence - zero,
            posterior.log_evidence_se,
            rotation[:, None],
            shift[:, None],
            jnp.ones((rows, 1)),
        )

    def _need_family(self, what: str) -> Any:
        if self.family is None:
            raise UsageError(
                f"{what}: a plain model function does not say which of its sites are a particle's latents. Write it as "
                "a Family (shared, conformation, volume) to have them integrated."
            )
        return self.family


def _named(prior: Any) -> dict[str, dist.Distribution]:
    """A conformation prior as named distributions."""
    if prior is None:
        return {}
    return prior if isinstance(prior, dict) else {"z": prior}
