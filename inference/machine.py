"""A model with its guide on a problem, as functions of unconstrained parameters."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.initialization import init_to_median, init_to_value

from hetmodels.data.batch import Batch
from hetmodels.families.protocol import Neural
from hetmodels.model import Observed
from hetmodels.plain import PlainProblem, Sites
from hetmodels.problem import ParticleProblem
from inference.conv_encoder import ConvEncoder
from inference.elbo import bound
from inference.encoder import Encoder
from inference.guides import Latents, Table, TableState
from inference.natural import NaturalSteps
from inference.sites import PLATE, Rows, local_sites, split_arrays, values

_POINTS = 2**17, 2**12  # Fourier pixels of a neural field at a time, on accelerators and on CPUs


class Machine:
    """The guide of the shared sites, joined with that of the latents of each particle.

    Attributes:
        latents: the latents inside the plate that are left to `local`, or None.
        law: which distribution of theirs the numbers describe.
        tabled: whether the numbers stand in a table.
        point: whether there are no shared sites to draw.
        network: whether decoder or encoder is a network, which can learn its particles by heart.
        first: unconstrained parameters to start from, by site.
    """

    def __init__(
        self, problem: PlainProblem, guide: Callable, local: Table | Encoder | ConvEncoder, batch: Any, key: Array
    ) -> None:
        self.problem, self.local, self.law = problem, local, local.law
        inside = set(local_sites(problem))
        sampled = [name for name, site in problem.sites.items() if site["type"] == "sample"]
        known = problem.start_sites()
        self.latents: Any = None
        self._shared: Callable | None = None
        if set(sampled) - inside or not _automatic(guide):
            options = {"init_loc_fn": partial(_start_at, known=known)} if _automatic(guide) else {}
            self._shared = guide(partial(self._outside, inside, key), **options)
        params = self._parameters(self._model, key, batch)
        begun = {name: value for name, (value, _) in params.items()}
        own, covered = self._declared(self._shared, key, batch)
        left = inside - covered
        self.point = not (covered - inside)
        if left:
            self.latents = Latents.of({name: problem.sites[name] for name in left})
        self.tabled = self.latents is not None and isinstance(local, Table)
        encodes = self.latents is not None and not self.tabled
        self.network = encodes or isinstance(getattr(problem, "family", None), Neural)
        numbers = None
        if self.tabled:
            numbers = jnp.tile(self.law.first(self.latents.dims), (_rows(batch), 1))
        params = own | self._parameters(partial(self._guide, numbers, begun), key, batch) | params
        begin = {name: jnp.asarray(known[name]) for name in known if name in params}
        self._transforms = {name: transform for name, (_, transform) in params.items()}
        self.first = {
            name: jnp.asarray(transform.inv(begin.get(name, value)), jnp.result_type(float))
            for name, (value, transform) in params.items()
        }
        self.draws = jax.jit(lambda params, keys: jax.lax.map(lambda key: self._draw(params, key), keys))
        self.encoded = jax.jit(self._encoded)
        self._score = jax.jit(self._scored)

    def _declared(self, function: Callable | None, key: Array, batch: Any) -> tuple[dict[str, tuple], set[str]]:
        """Parameters of a function of what the model receives, value and transform by site; its sample sites."""
        if function is None:
            return {}, set()
        args, kwargs = self._seen(batch)
        with handlers.block(), Rows(batch):
            trace = handlers.trace(handlers.seed(function, key)).get_trace(*args, **kwargs)
        params = {
            name: (site["value"], biject_to(site["kwargs"].get("constraint", dist.constraints.real)))
            for name, site in trace.items()
            if site["type"] == "param"
        }
        return params, {n for n, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}

    def _parameters(self, function: Callable, key: Array, batch: Any) -> dict[str, tuple]:
        """The parameters of `_declared`; compiled, so that what they do not need is not computed."""
        arrays, join = split_arrays(batch)
        transforms = {}

        def begin(arrays: list[Array], key: Array) -> Sites:
            found, _ = self._declared(function, key, join(arrays))
            transforms.update({name: transform for name, (_, transform) in found.items()})
            return {name: value for name, (value, _) in found.items()}

        return {name: (value, transforms[name]) for name, value in jax.jit(begin)(arrays, key).items()}

    def _model(self, *args: Any, **kwargs: Any) -> None:
        self._run(self.problem.model, args, kwargs)

    def _run(self, model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        given = self.problem.given
        with handlers.block(hide_fn=lambda site: site["type"] == "param" and site["name"] in given):
            model(args[0].batch if args else kwargs)

    def _outside(self, inside: set[str], key: Array, *args: Any, **kwargs: Any) -> None:
        """The model as a guide of the shared sites sees it: no images of a family, else no latents of particles."""
        family = getattr(self.problem, "family", None)
        model = self.problem.model if family is None else self.problem.declared  # type: ignore[attr-defined]
        with handlers.block(hide=list(inside)), handlers.seed(rng_seed=key):
            self._run(model, args, kwargs)

    def _guide(self, numbers: Array | None, params: Sites, *args: Any, **kwargs: Any) -> None:
        shared = self._drawn(params, *args, **kwargs)
        if self.latents is None:
            return
        data, dims = args[0], self.latents.dims
        if numbers is None:
            numbers = self._numbers(shared, data)
        with data.plate():
            self.latents.sample(self.law.distribution(jnp.asarray(numbers), dims))

    def _drawn(self, params: Sites, *args: Any, **kwargs: Any) -> Sites:
        """Parameters of the model, with the sites that the guide of the shared ones draws."""
        with handlers.trace() as drawn:
            if self._shared is not None:
                self._shared(*args, **kwargs)
        return params | {name: site["value"] for name, site in drawn.items() if site["type"] == "sample"}

    def _numbers(self, shared: Sites, data: Observed) -> Array:
        """Numbers of q that the encoder gives, (rows, numbers)."""
        assert not isinstance(self.local, Table)
        fixed = jax.lax.stop_gradient(shared)
        return self.local.numbers(data, self.latents.dims, self._log_joint(data, fixed))

    def _log_joint(self, data: Observed, shared: Sites) -> Callable[[Array], Array]:
        """Log density of each row's unconstrained latents, (rows, dims) -> (rows,), all other sites given."""
        problem = _holding(self.problem, len(data.batch.weight))

        def density(u: Array) -> Array:
            found = self.latents.values(u)
            log_det = sum(each.reshape(len(u), -1).sum(1) for _, each in found.values())
            fixed = shared | {name: value for name, (value, _) in found.items()}
            with handlers.block():
                model = handlers.seed(handlers.substitute(problem.model, data=fixed), jax.random.key(0))
                trace = handlers.trace(model).get_trace(data.batch)
            return log_det + sum(_by_row(site) for site in trace.values() if site["type"] == "sample" and _inside(site))

        return density

    def _seen(self, batch: Any) -> tuple[tuple, dict[str, Any]]:
        """What model and guide receive."""
        if not isinstance(self.problem, ParticleProblem):
            return (), batch
        obs = _holding(self.problem, _rows(batch)).observation
        return (Observed(batch, obs, jnp.ones((obs.groups, obs.disc.shells)), None),), {}

    def constrained(self, params: Sites) -> Sites:
        """Parameters in the space of the model."""
        return {name: self._transforms[name](value) for name, value in params.items()}

    def bound(
        self, params: Sites, numbers: Array | None, batch: Any, key: Array, share: Array | None = None
    ) -> tuple[Array, Array]:
        """One draw of the bound, all particles counted, in its two parts; see `inference.elbo.bound`.

        Args:
            params: unconstrained parameters.
            numbers: of q of each row, from a table or in place of an encoder's, (rows, numbers).
            batch: the data, or a part of a batch.
            key: random key.
            share: of real rows in the batch that this is a part of.
        """
        args, kwargs = self._seen(batch)
        with Rows(batch, share):
            known = self.constrained(params)
            return bound(self._model, partial(self._guide, numbers, known), known, key, args, kwargs)

    def parts(self, batch: Any, at_once: int | None) -> int:
        """Into how many equal parts a batch is cut: as few as have no more rows than `at_once`.

        If that is none, those of a neural field are small enough for a processor's cache or a device's memory, those
        of other models are whole.
        """
        if not isinstance(batch, Batch):
            return 1
        rows = len(batch.weight)
        if at_once is None:
            if not isinstance(getattr(self.problem, "family", None), Neural):
                return 1
            at_once = min(rows, max(1, _POINTS[jax.default_backend() == "cpu"] // batch.images.shape[1]))
        return next(parts for parts in range(1, rows + 1) if rows % parts == 0 and rows // parts <= at_once)

    def rows(self, batch: Batch) -> Array:
        """Rows of the table that a batch holds, one beyond the end for padding."""
        found = np.searchsorted(self.problem.training, np.asarray(batch.index))  # type: ignore[attr-defined]
        return jnp.asarray(np.where(np.asarray(batch.weight) > 0, found, self.problem.size), jnp.int32)

    def held_out(self, params: Sites, key: Array) -> float | None:
        """The bound per particle on those held out, the same draws whenever the key is; None if there are none."""
        problem = self.problem
        if not isinstance(problem, ParticleProblem):
            return None
        rows = np.flatnonzero(problem.particles.held_out)
        if not len(rows):
            return None
        size, total = min(len(rows), 64), 0.0
        for number, start in enumerate(range(0, len(rows), size)):
            index = rows[start : start + size]
            batch = problem.batch(index, size)
            total += len(index) * float(self._score(batch, params, jax.random.fold_in(key, number)))
        return total / len(rows)

    def _scored(self, batch: Batch, params: Sites, key: Array) -> Array:
        local, rest = self.bound(params, None, batch, key)
        return (local + rest) / self.problem.size

    def _encoded(self, params: Sites, batch: Batch) -> Array:
        """Numbers of q that the encoder gives at one draw of the shared values, (rows, numbers)."""
        return self._fixed(lambda shared, data: self._numbers(shared, data), params, batch)

    def _finished(self, steps: NaturalSteps, params: Sites, batch: Batch) -> tuple[Array, Array]:
        """Mean and precision of q after steps of each particle by itself from what the encoder gives."""

        def look(shared: Sites, data: Observed) -> tuple[Array, Array]:
            numbers, dims = self._numbers(shared, data), self.latents.dims
            precision = jnp.asarray(self.law.precision(numbers, dims))
            return steps(self._log_joint(data, shared), self.law.location(numbers, dims), precision)

        return self._fixed(look, params, batch)

    def log_ratios(self, params: Sites, numbers: Array | None, batch: Batch, key: Array, draws: int) -> Array:
        """log p(y, u) - log q(u) of draws u of each row's latents, the shared values being one draw, (draws, rows).

        Args:
            params: unconstrained parameters.
            numbers: of q of each row, or None where an encoder gives them.
            batch: the data.
            key: random key.
            draws: how many.
        """

        def look(shared: Sites, data: Observed) -> Array:
            found = self._numbers(shared, data) if numbers is None else numbers
            law, log_joint = self.law.distribution(found, self.latents.dims), self._log_joint(data, shared)

            def one(key: Array) -> Array:
                u, between = law.sample_with_intermediates(key)
                return log_joint(u) - (law.log_prob(u, between) if between else law.log_prob(u))

            return jax.lax.map(one, jax.random.split(key, draws))

        return self._fixed(look, params, batch)

    def _fixed(self, look: Callable, params: Sites, batch: Batch) -> Any:
        """A function of shared values and what the model receives, at one draw of the guide."""
        known, (args, _) = self.constrained(params), self._seen(batch)
        with handlers.block(), handlers.seed(rng_seed=0), handlers.substitute(data=known):
            return look(self._drawn(known, *args), args[0])

    def proposal(
        self, params: Sites, table: TableState | None, finish: NaturalSteps | None = None
    ) -> Callable[[Batch], Any] | None:
        """Centre and precision of q of the latents of a batch; None where q has no width, or misses latents.

        Args:
            params: unconstrained parameters.
            table: numbers of q per particle, or None where an encoder gives them.
            finish: steps of each particle by itself from what an encoder gives, or None.
        """
        latents = self.latents
        if latents is None or self.law.precision(self.law.first(latents.dims), latents.dims) is None:
            return None
        finished = (
            None
            if finish is None or table is not None or not self.law.normal
            else jax.jit(partial(self._finished, finish))
        )

        def about(batch: Batch) -> tuple[Array, Array | None] | None:
            if finished is not None:
                return finished(params, batch)
            if table is None:
                numbers = self.encoded(params, batch)
            elif np.asarray(batch.held_out)[np.asarray(batch.weight) > 0].any():
                return None
            else:
                numbers = table.value[self.rows(batch)]
            return self.law.location(numbers, latents.dims), self.law.precision(numbers, latents.dims)

        return about

    def _draw(self, params: Sites, key: Array) -> Sites:
        """Shared values at one draw of the guide."""
        problem, found = self.problem, {}
        if self._shared is not None:
            args, kwargs = self._seen(problem.example())
            with handlers.block():
                guide = handlers.seed(handlers.substitute(self._shared, data=self.constrained(params)), key)
                trace = handlers.trace(guide).get_trace(*args, **kwargs)
            inside = set(local_sites(problem))
            found = {
                name: site["value"]
                for name, site in trace.items()
                if site["type"] == "sample" and name in problem.sites and name not in inside
            }
        x = problem.unconstrained(found) | {name: params[name] for name in problem.parameters()}
        return values(problem, x, problem.data)


def _automatic(guide: Callable) -> bool:
    """Whether it makes a guide from any model, as NumPyro's automatic guides do."""
    return "init_loc_fn" in inspect.signature(guide).parameters


def _start_at(site: Any, known: Sites) -> Any:
    """Initial value of a site: the known one, else about the median of its prior."""
    return init_to_value(site, values=known) if site["name"] in known else init_to_median(site)


def _holding(problem: Any, rows: int) -> Any:
    """The problem with a plate that holds so many rows: those held out are looked at along with all others."""
    obs = problem.observation
    if rows <= obs.particles:
        return problem
    return dataclasses.replace(problem, observation=dataclasses.replace(obs, particles=rows))


def _inside(site: dict[str, Any]) -> bool:
    """Whether a site lies inside the plate over particles."""
    return any(frame.name == PLATE for frame in site["cond_indep_stack"])


def _by_row(site: dict[str, Any]) -> Array:
    """Log density of a site inside the plate, summed over all but the particles, (rows,)."""
    each = site["fn"].log_prob(site["value"])
    frame = next(frame for frame in site["cond_indep_stack"] if frame.name == PLATE)
    return jnp.moveaxis(each, frame.dim, 0).reshape(frame.size, -1).sum(1)


def _rows(batch: Any) -> int:
    return len(batch.weight)
