"""A NumPyro function with its arguments, as engines see it: sites, densities, a place to start from."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import log_density as numpyro_log_density

Sites = dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class PlainProblem:
    """Any NumPyro function with its arguments by name: one batch, the whole data.

    Attributes:
        function: the model.
        data: its arguments.
        given: values of sites that are not to be inferred.
        start: values to start from, by the names of the shared values (a family) or of the sites.
    """

    function: Callable[..., Any]
    data: dict[str, Any]
    given: Sites = dataclasses.field(default_factory=dict)
    start: Sites = dataclasses.field(default_factory=dict)

    @property
    def started(self) -> bool:
        """Whether there are values to start from."""
        return bool(self.start)

    @property
    def size(self) -> int:
        """Number of particles: a plain function counts as one."""
        return 1

    def model(self, batch: dict[str, Any]) -> Any:
        """The function on its arguments, with the given sites fixed."""
        fixed = handlers.substitute(handlers.condition(self.function, data=self.given), data=self.given)
        return fixed(**batch)

    def whole(self) -> Any:
        """All data at once."""
        return self.data

    def batches(self, pass_: int, key: Array, size: int = 0, shuffle: bool = False) -> Iterator[Any]:
        """One batch per pass: all data."""
        yield self.whole()

    @cached_property
    def sites(self) -> dict[str, dict]:
        """The unknown sites of the model by name, as a NumPyro trace has them.

        Compiled, so that what they do not depend on, the likelihood above all, is traced but never computed.
        """
        data, sites = self.example(), {}

        def values() -> dict[str, tuple]:
            with handlers.block():
                model = handlers.substitute(handlers.seed(self.model, jax.random.key(0)), substitute_fn=_of_improper)
                trace = handlers.trace(model).get_trace(data)
            for name, site in trace.items():
                unknown = site["type"] == "sample" and not site["is_observed"]
                if unknown or (site["type"] == "param" and name not in self.given):
                    sites[name] = site
            # the law of a parameter is the identity function, no array
            return {
                n: (s["value"], s["fn"] if s["type"] == "sample" else None, constraint(s)) for n, s in sites.items()
            }

        def constraint(site: dict) -> Any:
            return site["kwargs"].get("constraint", dist.constraints.real)

        found = jax.jit(values)()
        for name, (value, law, support) in found.items():
            sites[name] = sites[name] | {"value": value, "kwargs": sites[name]["kwargs"] | {"constraint": support}}
            sites[name] |= {} if law is None else {"fn": law}
        return sites

    def example(self) -> Any:
        """A batch of the shape that engines will see, to trace the model with."""
        return self.whole()

    def parameters(self) -> list[str]:
        """Names of `param` sites without a given value: an optimiser estimates them, a sampler refuses them."""
        return [name for name, site in self.sites.items() if site["type"] == "param"]

    def _transform(self, name: str) -> Any:
        site = self.sites[name]
        if site["type"] == "param":
            return biject_to(site["kwargs"].get("constraint", dist.constraints.real))
        return biject_to(site["fn"].support)

    def constrained(self, x: Sites) -> Sites:
        """Unconstrained coordinates to the values of the sites."""
        return {name: self._transform(name)(value) for name, value in x.items()}

    def unconstrained(self, values: Sites) -> Sites:
        """Inverse of `constrained`."""
        return {name: self._transform(name).inv(jnp.asarray(value)) for name, value in values.items()}

    def initial(self, key: Array) -> Sites:
        """Unconstrained start: parameters at their first guess, sample sites near the middle of their support."""
        keys = jax.random.split(key, max(len(self.sites), 1))
        start = {}
        for k, (name, site) in zip(keys, self.sites.items(), strict=False):
            if site["type"] == "param":
                start[name] = self._transform(name).inv(site["value"])
            else:
                middle = self._transform(name).inv(site["value"])
                start[name] = 0.1 * jax.random.normal(k, jnp.shape(middle))
        known = {name: value for name, value in self.start_sites().items() if name in start}
        return start | self.unconstrained(known)

    def start_sites(self) -> Sites:
        """Values of sites to start from."""
        return self.start

    def log_density(self, x: Sites, batch: Any = None, jacobian: bool = True) -> Array:
        """Log joint density in unconstrained coordinates.

        Args:
            x: unconstrained sites.
            batch: the data it is evaluated on, rescaled to all of it; everything if None.
            jacobian: count the change of variables of sample sites (a sampler's target) or not (a mode's).
        """
        batch = self.whole() if batch is None else batch
        values = self.constrained(x)
        total, _ = numpyro_log_density(handlers.seed(self.model, jax.random.key(0)), (batch,), {}, values)
        for name, site in self.sites.items():
            if jacobian and site["type"] == "sample":
                transform = self._transform(name)
                total = total + jnp.sum(transform.log_abs_det_jacobian(x[name], values[name]))
        return total


def _of_improper(site: dict[str, Any]) -> Array | None:
    """A value in the support of an improper prior, which cannot be drawn from."""
    if site["type"] != "sample" or site["is_observed"] or not isinstance(site["fn"], dist.ImproperUniform):
        return None
    law = site["fn"]
    return biject_to(law.support)(jnp.zeros(law.batch_shape + law.event_shape))
