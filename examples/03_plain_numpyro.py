"""Any NumPyro function runs as well: eight schools (Rubin 1981) under Hamiltonian Monte Carlo."""

import argparse

import arviz as az
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from inference import MCMC, fit

Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(y, sigma):
    """Effects of coaching in eight schools about a common mean."""
    mean = numpyro.sample("mean", dist.Normal(0, 5))
    spread = numpyro.sample("spread", dist.HalfCauchy(5))
    offset = numpyro.sample("offset", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Normal(mean + spread * offset, sigma), obs=y)


def main() -> None:
    """Run at the size asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that it works")
    smoke = parser.parse_args().smoke
    draws = 50 if smoke else 1000

    engine = MCMC(draws=draws, warmup=draws, chains=4)
    posterior = fit(eight_schools, {"y": Y, "sigma": SIGMA}, engine, key=jax.random.key(0))
    print(az.summary(posterior.to_arviz(), var_names=["mean", "spread"]))


if __name__ == "__main__":
    main()
