"""Two families for the tests only: moving bodies and a neural field, in as few lines as the contract allows."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.imaging.grids import Grid
from hetmodels.imaging.rotations import from_rotvec
from hetmodels.tree import pytree, static
from hetmodels.volumes.gaussians import Gaussians


@pytree
class TwoBodies:
    """A fixed body of two beads and a moving one of two, which turns about the origin by a small random rotation."""

    spread: float = static(default=0.3)  # [rad] per axis
    width: float = static(default=8.0)  # [Å]

    def shared(self):
        prior = dist.Normal(jnp.array([[-16.0, 0, 0], [0, -12, 8], [14, 0, 0], [16, 10, 0]]), 6.0)
        return {"centres": numpyro.sample("centres", prior.to_event(2))}

    def conformation(self, shared):
        return dist.Normal(0.0, self.spread).expand([3]).to_event(1)

    def volume(self, shared, z):
        moved = shared["centres"][2:] @ from_rotvec(z).T
        centres = jnp.concatenate([shared["centres"][:2], moved])
        return Gaussians(centres, jnp.full(4, 8e3), jnp.full(4, self.width))


@pytree
class Field:
    """A density whose transform is a small network of the frequency and a latent, times a Gaussian."""

    network: dict
    z: Array
    reach: float = static(default=8.0)  # [Å], scale of the features
    width: float = static(default=8.0)  # [Å]

    def transform(self, k: Array) -> Array:
        """At frequencies (…, 3) [1/Å]; even real and odd imaginary part, as the density is real."""

        def outputs(k: Array) -> Array:
            angle = 2 * jnp.pi * self.reach * k
            parts = [angle, jnp.sin(angle), jnp.cos(angle), jnp.sin(2 * angle), jnp.cos(2 * angle)]
            latent = jnp.broadcast_to(self.z, (*k.shape[:-1], *self.z.shape))
            x = jnp.concatenate([*parts, latent], axis=-1)
            x = jax.nn.silu(x @ self.network["w1"] + self.network["b1"])
            x = jax.nn.silu(x @ self.network["w2"] + self.network["b2"])
            return x @ self.network["w3"] + self.network["b3"]

        there, back = outputs(k), outputs(-k)
        half = jax.lax.complex(there[..., 0] + back[..., 0], there[..., 1] - back[..., 1]) / 2
        return half * jnp.exp(-2 * (jnp.pi * self.width) ** 2 * (k**2).sum(-1))

    def project(self, rotation: Array, grid: Grid) -> Array:
        return self.transform(jnp.matmul(grid.points, rotation[:2], precision=jax.lax.Precision.HIGHEST))

    def density(self, size: int, spacing: float) -> Array:
        line = jnp.fft.fftfreq(size)
        z, y, x = jnp.meshgrid(line, line, line, indexing="ij")
        inside = x**2 + y**2 + z**2 <= (((size - 1) // 2 + 0.5) / size) ** 2
        half = self.transform(jnp.stack([x, y, z], axis=-1) / spacing) * inside
        return jnp.fft.fftshift(jnp.fft.ifftn(half)).real * size


@pytree
class NeuralField:
    """A decoder shared by all particles, one `param` site per array, and a normal latent."""

    dims: int = static(default=1)
    hidden: int = static(default=24)

    def shared(self):
        sizes = [15 + self.dims, self.hidden, self.hidden, 2]
        sites = {}
        for i, (rows, columns) in enumerate(zip(sizes, sizes[1:], strict=False), start=1):

            def first(key, shape=(rows, columns)):
                return jax.random.normal(key, shape) / shape[0] ** 0.5

            sites[f"w{i}"] = numpyro.param(f"w{i}", first)
            sites[f"b{i}"] = numpyro.param(f"b{i}", jnp.zeros(columns))
        return sites

    def conformation(self, shared):
        return dist.Normal(0.0, 1.0).expand([self.dims]).to_event(1)

    def volume(self, shared, z):
        return Field(shared, z)
