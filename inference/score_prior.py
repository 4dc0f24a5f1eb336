"""A learnt density of the latents over the population: score-based diffusion (Song et al. 2021; Kreis et al. 2022).

The latents of a set of particles seldom spread like N(0, I): they have holes and modes, and draws of N(0, I) that fall
into a hole decode to densities that no particle has. What they do spread like is learnt here from the posteriors of
single particles, z_i ~ N(mean_i, covariance_i), their aggregate: with the width that uncertainty gives it, so that
barriers look lower than they are. `hetmodels.analysis.mixing_density` frees a density in few dimensions from that.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior
from hetmodels.tree import pytree

_FIRST, _LAST = 1e-2, 1.0  # diffusion times between which the density flows
_SLOW, _FAST = 0.1, 20.0  # rates of the noise at times 0 and 1
_WAVES = 16  # pairs of waves by which the network is told the time
_KEPT = 0.999  # of the running mean of the weights, per step


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """How a `ScorePrior` is learnt.

    Attributes:
        hidden: width of the network.
        layers: residual layers.
        steps: of Adam, with a cosine decay to a hundredth.
        batch: draws per step.
        rate: learning rate.

    Raises:
        ValueError: if a setting is out of range.
    """

    hidden: int = 128
    layers: int = 3
    steps: int = 4000
    batch: int = 512
    rate: float = 5e-3

    def __post_init__(self) -> None:
        if min(self.hidden, self.layers, self.steps, self.batch) < 1 or not self.rate > 0:
            raise ValueError(f"Diffusion: all settings must be positive, got {self!r}.")

    def fit(self, key: Array, mean: np.ndarray, covariance: np.ndarray | None = None) -> "ScorePrior":
        """Learn the density of z_i ~ N(mean_i, covariance_i), i at random.

        Args:
            key: random key.
            mean: (particles, dims).
            covariance: (particles, dims, dims); zero if None.

        Raises:
            UsageError: if there are not at least as many particles as make a covariance, or values are not finite.
        """
        mean = np.asarray(mean, np.float32)
        if mean.ndim != 2 or len(mean) <= mean.shape[1] + 1 or not mean.shape[1] or not np.isfinite(mean).all():
            raise UsageError(
                f"Diffusion.fit: needs finite latents (particles, dims) of more particles than dims, got {mean.shape}; "
                "a family without latents has no density of them."
            )
        widths = np.zeros((*mean.shape, mean.shape[1])) if covariance is None else np.asarray(covariance)
        total = np.cov(mean.T).reshape(mean.shape[1], -1) + widths.mean(0)
        root = np.linalg.cholesky(total + 1e-9 * np.trace(total) * np.eye(len(total)))
        white = np.linalg.solve(root, (mean - mean.mean(0)).T).T
        roots = np.linalg.solve(root, _roots(widths))
        key_first, key_train = jax.random.split(key)
        weights = _first_weights(key_first, mean.shape[1], self.hidden, self.layers)
        weights = _trained(self, key_train, weights, jnp.asarray(white), jnp.asarray(roots, jnp.float32))
        return ScorePrior(weights, jnp.asarray(mean.mean(0)), jnp.asarray(root, jnp.float32))


@pytree
class ScorePrior:
    """A density of latents: N(0, I) carried by the probability flow of a diffusion.

    dz/dt = -rate(t)/2 (z - noise(z, t)/sd(t)) carries the density at the first time to N(0, I) (Song et al. 2021,
    eq. 13); the network gives how much the noise differs from that of normal latents, so that where they are normal
    nothing flows.

    Attributes:
        weights: of the network.
        centre: mean of the latents, (dims,).
        root: a root of their covariance, (dims, dims).
        steps: Heun steps of the flow.
    """

    weights: dict[str, Array]
    centre: Array
    root: Array
    steps: int = dataclasses.field(default=60, metadata={"static": True})

    def sample(self, key: Array, draws: int) -> Array:
        """Draws, (draws, dims)."""
        z = jax.random.normal(key, (draws, len(self.centre)))
        return self._coloured(_flowed(self.weights, z, self._times()[::-1])[0])

    def log_density(self, z: Array) -> Array:
        """Log density of latents (…, dims) in nats, exact but for the steps of the flow."""
        white = jax.scipy.linalg.solve_triangular(
            self.root, (z - self.centre).reshape(-1, len(self.centre)).T, lower=True
        )
        end, grown = _flowed(self.weights, white.T, self._times())
        spread = jnp.log(jnp.abs(jnp.diagonal(self.root))).sum()
        return (_log_normal(end) + grown - spread).reshape(z.shape[:-1])

    def between(self, first: Array, last: Array, count: int) -> Array:
        """Latents on a path that keeps to the population, (count, dims): an arc in the space of the noise."""
        solve = partial(jax.scipy.linalg.solve_triangular, self.root, lower=True)
        ends, _ = _flowed(self.weights, solve((jnp.stack([first, last]) - self.centre).T).T, self._times())
        length = jnp.linalg.norm(ends, axis=1)
        angle = jnp.arccos(jnp.clip(ends[0] @ ends[1] / jnp.maximum(length.prod(), 1e-12), -1.0, 1.0))
        share = jnp.linspace(0.0, 1.0, count)[:, None]
        turned = (jnp.sin((1 - share) * angle) * ends[0] + jnp.sin(share * angle) * ends[1]) / jnp.sin(angle)
        path = jnp.where(jnp.sin(angle) > 1e-3, turned, (1 - share) * ends[0] + share * ends[1])
        return self._coloured(_flowed(self.weights, path, self._times()[::-1])[0])

    def _coloured(self, white: Array) -> Array:
        return self.centre + white @ self.root.T

    def _times(self) -> Array:
        return jnp.linspace(_FIRST**0.5, _LAST**0.5, self.steps + 1) ** 2


@dataclasses.dataclass(frozen=True)
class Population:
    """A learnt density of the latents of a run, and what it is worth.

    Attributes:
        prior: the density.
        gain: nats per particle by which held-out latents are likelier under it than under N(0, I).
        error: standard error of the gain.
    """

    prior: ScorePrior
    gain: float
    error: float


def population(posterior: Posterior, key: Array, how: Diffusion = Diffusion()) -> Population:  # noqa: B008
    """Learn the density of the latents of a run's training particles, and score it on those held out.

    Args:
        posterior: of a family with continuous latents.
        key: random key.
        how: settings.

    Raises:
        UsageError: if nothing was held out, or the family has no continuous latents.
    """
    mean, covariance, held = (posterior.local.get(name) for name in ("mean", "covariance", "held_out"))
    if mean is None or covariance is None or held is None or not np.any(held):
        raise UsageError("population: needs a run of a particle set with particles held out; fit with holdout=0.1.")
    key_fit, key_draw = jax.random.split(key)
    prior = how.fit(key_fit, mean[~held], covariance[~held])
    noise = jax.random.normal(key_draw, mean[held].shape)
    z = jnp.asarray(mean[held]) + jnp.einsum("nij,nj->ni", jnp.asarray(_roots(covariance[held])), noise)
    gain = np.asarray(jax.jit(prior.log_density)(z) - _log_normal(z), np.float64)
    return Population(prior, float(gain.mean()), float(gain.std() / np.sqrt(len(gain))))


def _roots(covariance: np.ndarray) -> np.ndarray:
    """Symmetric roots of covariances, (…, dims, dims)."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def _log_normal(z: Array) -> Array:
    return -0.5 * jnp.sum(z**2, axis=-1) - 0.5 * z.shape[-1] * np.log(2 * np.pi)


def _schedule(t: Array) -> tuple[Array, Array, Array]:
    """Rate of the noise, what is left of the latent, and standard deviation of the noise at a time."""
    kept = jnp.exp(-0.5 * (_SLOW * t + 0.5 * (_FAST - _SLOW) * t**2))
    return _SLOW + (_FAST - _SLOW) * t, kept, jnp.sqrt(1 - kept**2)


def _first_weights(key: Array, dims: int, hidden: int, layers: int) -> dict[str, Array]:
    """Weights to start from: those of the place are wide, as small ones make a network that is linear in it."""
    key_z, key_t, key_b, key_w = jax.random.split(key, 4)
    return {
        "place": 1.5 * jax.random.normal(key_z, (dims, hidden)),
        "time": jax.random.uniform(key_t, (2 * _WAVES, hidden), minval=-1.0, maxval=1.0) / _WAVES**0.5,
        "blocks": jax.random.uniform(key_w, (layers, hidden, hidden), minval=-1.0, maxval=1.0) * (3 / hidden) ** 0.5,
        "biases": jax.random.uniform(key_b, (layers + 1, hidden), minval=-1.0, maxval=1.0),
        "output": jnp.zeros((hidden, dims)),
    }


def _differs(weights: dict[str, Array], z: Array, t: Array) -> Array:
    """How much the mean noise in z (dims,) at time t differs from that of normal latents, (dims,)."""
    phase = jnp.log(t) * 2.0 ** jnp.linspace(-2, 3, _WAVES)
    seen = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)])
    h = jax.nn.silu(z @ weights["place"] + seen @ weights["time"] + weights["biases"][0])
    for block, bias in zip(weights["blocks"], weights["biases"][1:], strict=True):
        h = h + jax.nn.silu(h @ block + bias)
    return h @ weights["output"]


def _trained(how: Diffusion, key: Array, weights: dict[str, Array], mean: Array, roots: Array) -> dict[str, Array]:
    """Denoising score matching (Vincent 2011; Ho et al. 2020): the running mean of the weights after all steps."""
    optimiser = optax.adam(optax.cosine_decay_schedule(how.rate, how.steps, 0.01))

    def loss(weights: dict[str, Array], key: Array, mean: Array, roots: Array) -> Array:
        key_i, key_z, key_t, key_n = jax.random.split(key, 4)
        row = jax.random.randint(key_i, (how.batch,), 0, len(mean))
        z, noise = (jax.random.normal(k, (how.batch, mean.shape[1])) for k in (key_z, key_n))
        z = mean[row] + jnp.einsum("nij,nj->ni", roots[row], z)
        even = (jnp.arange(how.batch) + jax.random.uniform(key_t)) / how.batch
        t = (_FIRST**0.5 + (_LAST**0.5 - _FIRST**0.5) * even) ** 2
        _, kept, sd = _schedule(t)
        z = kept[:, None] * z + sd[:, None] * noise
        found = sd[:, None] * z + jax.vmap(partial(_differs, weights))(z, t)
        return jnp.mean((found - noise) ** 2)

    @jax.jit
    def all_steps(weights: dict[str, Array], key: Array, mean: Array, roots: Array) -> dict[str, Array]:
        def step(carry: tuple, key: Array) -> tuple[tuple, None]:
            weights, state, averaged = carry
            move, state = optimiser.update(jax.grad(loss)(weights, key, mean, roots), state)
            weights = optax.apply_updates(weights, move)
            averaged = jax.tree.map(lambda a, w: _KEPT * a + (1 - _KEPT) * w, averaged, weights)
            return (weights, state, averaged), None

        begin = weights, optimiser.init(weights), weights
        (_, _, averaged), _ = jax.lax.scan(step, begin, jax.random.split(key, how.steps))
        return averaged

    return all_steps(weights, key, mean, roots)


def _flowed(weights: dict[str, Array], z: Array, times: Array) -> tuple[Array, Array]:
    """Where the probability flow carries z (rows, dims), and the integral of its divergence, by Heun's method."""

    def rate(z: Array, t: Array) -> tuple[Array, Array]:
        speed, _, sd = _schedule(t)

        def velocity(z: Array) -> Array:
            return 0.5 * speed / sd * _differs(weights, z, t)

        return jax.vmap(velocity)(z), jax.vmap(lambda z: jnp.trace(jax.jacfwd(velocity)(z)))(z)

    def step(carry: tuple[Array, Array], ends: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (z, grown), (t, last) = carry, ends
        move, divergence = rate(z, t)
        there, further = rate(z + (last - t) * move, last)
        z = z + 0.5 * (last - t) * (move + there)
        return (z, grown + 0.5 * (last - t) * (divergence + further)), None

    (z, grown), _ = jax.lax.scan(step, (z, jnp.zeros(len(z), z.dtype)), (times[:-1], times[1:]))
    return z, grown
