"""A model with its guide on a problem, as functions of unconstrained parameters."""

import inspect
import math
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
from inference.elbo import bound
from inference.encoder import Encoder
from inference.guides import Latents, Table, TableState
from inference.sites import Rows, local_sites, values

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

    def __init__(self, problem: PlainProblem, guide: Callable, local: Table | Encoder, batch: Any, key: Array) -> None:
        self.problem, self.local, self.law = problem, local, local.law
        inside = set(local_sites(problem))
        sampled = [name for name, site in problem.sites.items() if site["type"] == "sample"]
        known = problem.start_sites()
        self.latents: Any = None
        self._shared: Callable | None = None
        if set(sampled) - inside or not _automatic(guide):
            options = {"init_loc_fn": partial(_start_at, known=known)} if _automatic(guide) else {}
            self._shared = guide(partial(self._outside, inside, key), **options)
        params, covered = self._declared(self._shared, key, batch)
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
        params |= self._declared(partial(self._guide, numbers), key, batch)[0]
        params |= self._declared(self._model, key, batch)[0]
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

    def _model(self, *args: Any, **kwargs: Any) -> None:
        given = self.problem.given
        with handlers.block(hide_fn=lambda site: site["type"] == "param" and site["name"] in given):
            self.problem.model(args[0].batch if args else kwargs)

    def _outside(self, inside: set[str], key: Array, *args: Any, **kwargs: Any) -> None:
        """The model as a guide of the shared sites sees it: latents of the particles are drawn and hidden."""
        with handlers.block(hide=list(inside)), handlers.seed(rng_seed=key):
            self._model(*args, **kwargs)

    def _guide(self, numbers: Array | None, *args: Any, **kwargs: Any) -> None:
        if self._shared is not None:
            self._shared(*args, **kwargs)
        if self.latents is None:
            return
        data, dims = args[0], self.latents.dims
        found = self.local.numbers(data, dims) if isinstance(self.local, Encoder) and numbers is None else numbers
        with data.plate():
            self.latents.sample(self.law.distribution(jnp.asarray(found), dims))

    def _seen(self, batch: Any) -> tuple[tuple, dict[str, Any]]:
        """What model and guide receive."""
        if not isinstance(self.problem, ParticleProblem):
            return (), batch
        obs = self.problem.observation
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
            return bound(self._model, partial(self._guide, numbers), self.constrained(params), key, args, kwargs)

    def parts(self, batch: Any, at_once: int | None) -> int:
        """Into how many equal parts a batch is cut: as few as have no more rows than `at_once`.

        If that is none, those of a neural field are small enough for a processor's cache or a device's memory, those
        of other models are whole.
        """
        if not isinstance(batch, Batch):
            return 1
        rows = len(batch.weight)
        if at_once is None:
            neural = isinstance(getattr(self.problem, "family", None), Neural)
            points = _POINTS[jax.default_backend() == "cpu"] if neural else math.inf
            at_once = int(min(rows, max(1, points // batch.images.shape[1])))
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
        """Numbers of q that the encoder gives, (rows, numbers)."""
        assert isinstance(self.local, Encoder)
        encode = handlers.substitute(self.local.numbers, data=self.constrained(params))
        with handlers.block():
            return encode(self._seen(batch)[0][0], self.latents.dims)

    def proposal(self, params: Sites, table: TableState | None) -> Callable[[Batch], Any] | None:
        """Centre and precision of q of the latents of a batch; None where q has no width, or misses latents."""
        latents = self.latents
        if latents is None or self.law.precision(self.law.first(latents.dims), latents.dims) is None:
            return None

        def about(batch: Batch) -> tuple[Array, Array | None] | None:
            if table is None:
                numbers = self.encoded(params, batch)
            elif np.asarray(batch.held_out)[np.asarray(batch.weight) > 0].any():
                return None
            else:
                numbers = table.value[self.rows(batch)]
            return numbers[:, : latents.dims], self.law.precision(numbers, latents.dims)

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


def _rows(batch: Any) -> int:
    return len(batch.weight)
