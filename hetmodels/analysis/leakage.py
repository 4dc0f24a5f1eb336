"""Do latents encode the conformation, or how a particle was seen? Two tests that need no truth.

If a latent matters, an image is far less probable under that of another particle. If it is about the molecule, it
cannot be told from defocus and view: E[z | y] averaged over images of one view is the prior's mean, whatever the view.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.data.particles import Particles
from hetmodels.model import Observed, per_particle, render
from hetmodels.observation import Contrast, Known, Observation, Radial, marginal_ratio
from hetmodels.posterior import Posterior

COST = 5.0  # nats per particle that permuted latents must cost
SHARE = 0.05  # of the variance of the latents that defocus, view or contrast may explain
ROWS, BATCH, FOLDS, PERMUTATIONS = 500, 16, 5, 2
_PER_FEATURE = 10


@dataclasses.dataclass(frozen=True)
class Leakage:
    """What the latents are about.

    Attributes:
        cost: nats per particle by which its image is less probable under the latent of another.
        cost_se: standard error of the mean over particles.
        explained: share of the variance of the latents, along the direction where it is largest, that is predicted in
            particles left out; by what predicts it: `defocus`, `view` (pose) and `contrast`. NaN where that does not
            vary or there are too few particles.
        words: the verdict, one sentence for each finding.
    """

    cost: float
    cost_se: float
    explained: dict[str, float]
    words: tuple[str, ...]

    @property
    def rejected(self) -> bool:
        """Whether the latents must not be read as conformations."""
        return self.cost < COST or any(value > SHARE for value in self.explained.values())


def leakage(posterior: Posterior, particles: Particles, *, rows: int = ROWS, seed: int = 0) -> Leakage | None:
    """Test what the latents of a run encode; None where it has none.

    Args:
        posterior: of a family.
        particles: the same particles.
        rows: particles whose images are looked at, drawn at random.
        seed: of that draw, of the permutations and of the folds.
    """
    local, family = posterior.local, posterior.family
    dims, nodes = local["mean"].shape[1], local["responsibilities"].shape[1]
    if not dims and nodes < 2:
        return None
    rng = np.random.default_rng(seed)
    clean = np.flatnonzero(local["outlier"] < 0.5)
    chosen = np.sort(rng.permutation(clean)[:rows])
    latents = np.asarray(local["mean"], float) if dims else np.asarray(local["responsibilities"], float)
    z = local["mean"][chosen] if dims else np.asarray(family.grids(posterior.first())[0])[
        local["responsibilities"][chosen].argmax(1)
    ]  # fmt: skip
    own, amplitude = _densities(posterior, particles, chosen, z)
    others = [_densities(posterior, particles, chosen, z[_deranged(rng, len(z))])[0] for _ in range(PERMUTATIONS)]
    costs = own - np.mean(others, axis=0)
    explained = {
        "defocus": explained_share(latents[clean], _defocus(particles)[clean], rng),
        "view": explained_share(latents[clean], _view(posterior)[clean], rng),
        "contrast": explained_share(latents[chosen], amplitude[:, None] ** [1, 2], rng),
    }
    cost, se = float(costs.mean()), float(costs.std(ddof=1) / len(costs) ** 0.5)
    return Leakage(cost, se, explained, _verdict(cost, se, explained))


def _deranged(rng: np.random.Generator, count: int) -> np.ndarray:
    """A permutation of one cycle, so that each particle gets the latent of another."""
    order = rng.permutation(count)
    found = np.empty(count, int)
    found[order] = np.roll(order, 1)
    return found


def _densities(
    posterior: Posterior, particles: Particles, chosen: np.ndarray, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """log p(y | z) - log p(y | noise only) of some particles at these latents, and the amplitude that fits best."""
    local, shared = posterior.local, posterior.shared_point()
    contrast = Contrast() if np.ptp(local["contrast"]) > 0 else None
    groups, halves = shared["noise"].shape[0], bool(posterior.provenance.get("halves"))
    observation = Observation(particles.disc, particles.spacing, groups, len(particles), Known(), Radial(), contrast)

    @jax.jit
    def evaluate(shared: dict[str, Array], batch: Batch, z: Array) -> tuple[Array, Array]:
        data = Observed(batch, observation, shared["noise"], None)
        model = render(per_particle(lambda one: posterior.family.volume(shared, posterior.latent(one)), z), data, {})
        linear = 2 * jnp.sum((jnp.conj(batch.images) * model).real / data.variance, axis=-1)
        quadratic = jnp.sum(jnp.abs(model) ** 2 / data.variance, axis=-1)
        return marginal_ratio(linear, quadratic, contrast)[0], linear / jnp.maximum(2 * quadratic, 1e-12)

    found, size, place = [], min(BATCH, len(chosen)), {row: i for i, row in enumerate(chosen)}
    for batch in particles.batches(chosen, size):
        index = np.asarray(batch.index)
        rotation, shift = (jnp.asarray(local[name][index], jnp.float32) for name in ("rotation", "shift"))
        group = batch.group + (groups // 2) * batch.half if halves else batch.group
        posed = dataclasses.replace(batch, rotation=rotation, shift=shift, group=group)
        rows = z[[place[int(i)] for i in index]]
        keep = np.asarray(batch.weight) > 0
        found.append([np.asarray(part, float)[keep] for part in evaluate(shared, posed, jnp.asarray(rows))])
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def _defocus(particles: Particles) -> np.ndarray:
    """Mean defocus, its square and the astigmatism, (N, 3)."""
    ctf = particles.ctf
    mean, difference = (ctf.defocus_u + ctf.defocus_v) / 2, ctf.defocus_u - ctf.defocus_v
    return np.stack([mean, (mean - mean.mean()) ** 2, difference], axis=1)


def _view(posterior: Posterior) -> np.ndarray:
    """Functions of the pose: direction of view to second degree, in-plane angle to second order, shift, (N, 14)."""
    turn = np.asarray(posterior.local["rotation"], float)
    x, y, z = turn[:, 2].T
    psi = np.arctan2(turn[:, 1, 2], turn[:, 0, 2])
    quadratic = [x * y, y * z, x * z, x**2 - y**2, 3 * z**2]
    waves = [np.cos(psi), np.sin(psi), np.cos(2 * psi), np.sin(2 * psi)]
    return np.stack([x, y, z, *quadratic, *waves, *np.asarray(posterior.local["shift"], float).T], axis=1)


def explained_share(latents: np.ndarray, features: np.ndarray, rng: np.random.Generator) -> float:
    """How much of the variance of latents some features explain in particles left out, where it is most.

    In each fold the direction of the latents and the line are found by canonical correlation of the other particles
    (Hotelling 1936), so that the number of latents and of features does not raise the result.

    Args:
        latents: (particles, dims).
        features: (particles, features).
        rng: makes the folds.

    Returns:
        1 - residual over total variance along that direction; NaN without variation or with too few particles.
    """
    latents, features = (x[:, x.std(0) > 1e-9 * np.abs(x).max(initial=1e-30)] for x in (latents, features))
    count = len(latents)
    if not latents.shape[1] or not features.shape[1] or count < _PER_FEATURE * (features.shape[1] + latents.shape[1]):
        return float("nan")
    fold = rng.permutation(count) % FOLDS
    residual = total = 0.0
    for number in range(FOLDS):
        train, test = fold != number, fold == number
        white_z, white_x = _whitening(latents[train]), _whitening(features[train])
        z, x = white_z(latents[train]), white_x(features[train])
        left, strengths, right = np.linalg.svd(x.T @ z / len(z), full_matrices=False)
        score, guess = white_z(latents[test]) @ right[0], strengths[0] * (white_x(features[test]) @ left[:, 0])
        residual += float(((score - guess) ** 2).sum())
        total += float((score**2).sum())
    return 1 - residual / total


def _whitening(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The map to coordinates of mean 0 and covariance 1 on these rows; directions without variance are dropped."""
    mean = values.mean(0)
    scale = values.std(0) + 1e-300
    eigen, vectors = np.linalg.eigh(np.cov(((values - mean) / scale).T).reshape(len(mean), len(mean)))
    keep = eigen > 1e-9 * eigen.max()
    basis = vectors[:, keep] / np.sqrt(eigen[keep])
    return lambda rows: ((rows - mean) / scale) @ basis


def _verdict(cost: float, se: float, explained: dict[str, float]) -> tuple[str, ...]:
    found = []
    if cost < COST:
        found.append(
            f"An image is only {cost:.1f} ± {se:.1f} nats more probable under its own latent than under another's, "
            f"less than {COST:.0f}: the latents say little about the images. Do not read structures into them."
        )
    cures = {
        "defocus": "check the CTF values and the window, give the encoder another input, or use a table",
        "view": "refine the poses, look for preferred views of single states, or use a table in place of an encoder",
        "contrast": "fit with the contrast as an unknown",
    }
    names = {"defocus": "defocus", "view": "pose", "contrast": "contrast"}
    for name, cure in cures.items():
        if explained[name] > SHARE:
            found.append(
                f"The latents follow the {names[name]}: it explains {explained[name]:.0%} of their variance along one "
                f"direction, {SHARE:.0%} are allowed. Part of them is not conformation: {cure}."
            )
    if not found:
        shares = ", ".join(f"{names[k]} {max(v, 0.0):.1%}" for k, v in explained.items() if not np.isnan(v))
        found.append(
            f"The latents are about the density: another particle's would cost {cost:.1f} ± {se:.1f} nats"
            + (f", and little of them is explained by {shares}." if shares else ".")
        )
    return tuple(found)
