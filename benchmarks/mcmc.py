"""Effective draws per CPU second of `MCMC` beside the library that it calls: NumPyro's and BlackJAX's NUTS.

    python benchmarks/mcmc.py [--runs 7] [--seconds 5]

Eight schools (Rubin 1981), four chains side by side, the same warm-up. Both sides draw for the given CPU time or
longer, in turns; compilation and warm-up are left out. The figure is the median ratio of the effective sample sizes per
CPU second. About three minutes on two idle cores.
"""

import argparse
import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import record
from numpyro.infer import NUTS
from numpyro.infer.util import initialize_model

from hetmodels.arviz_bridge import ess
from hetmodels.plain import PlainProblem
from inference import MCMC, blackjax_kernels

Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
CHAINS, WARMUP, BLOCK = 4, 500, 1000


def schools(y, sigma):
    mean = numpyro.sample("mean", dist.Normal(0, 5))
    spread = numpyro.sample("spread", dist.HalfCauchy(5))
    offset = numpyro.sample("offset", dist.Normal(0, 1).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(mean + spread * offset, sigma), obs=y)


def ours(kernel):
    """A function that draws a block of our engine, after warm-up."""
    problem = PlainProblem(schools, {"y": Y, "sigma": SIGMA})
    engine = MCMC(draws=10**9, warmup=WARMUP, chains=CHAINS, kernel=kernel, block=BLOCK)
    state = engine.init(jax.random.key(0), problem)
    while int(state.done) < WARMUP:
        state, _ = engine.step(None, problem, state, problem.whole())

    def block():
        nonlocal state
        state, _ = engine.step(None, problem, state, problem.whole())
        return engine.kept(problem, state)[0]

    block()
    return block


def numpyro_directly():
    """A function that draws a block of NumPyro's NUTS, after warm-up; its `MCMC` compiles anew in every run."""
    kernel, data = NUTS(schools), (Y, SIGMA)
    state = kernel.init(jax.random.split(jax.random.key(0), CHAINS), WARMUP, None, data, {})
    warm = jax.jit(lambda state: jax.lax.fori_loop(0, WARMUP, lambda _, s: kernel.sample(s, data, {}), state))
    state = warm(state)

    @jax.jit
    def draw(state):
        def step(state, _):
            state = kernel.sample(state, data, {})
            return state, state.z

        state, positions = jax.lax.scan(step, state, None, length=BLOCK)
        draws = jax.vmap(jax.vmap(kernel.postprocess_fn(data, {})))(positions)
        return state, {name: jnp.swapaxes(v, 0, 1) for name, v in draws.items()}

    def block():
        nonlocal state
        state, draws = draw(state)
        return draws

    block()
    return block


def blackjax_directly():
    """A function that draws a block of BlackJAX's NUTS, after its window adaptation."""
    keys = jax.random.split(jax.random.key(0), CHAINS)
    info = initialize_model(keys, schools, model_args=(Y, SIGMA), dynamic_args=True)
    density = lambda z: -info.potential_fn(Y, SIGMA)(z)  # noqa: E731
    adapt = blackjax.window_adaptation(blackjax.nuts, density)
    (state, tuned), _ = jax.jit(jax.vmap(lambda k, z: adapt.run(k, z, num_steps=WARMUP)))(keys, info.param_info.z)
    kernel = blackjax.nuts.build_kernel()

    @jax.jit
    def draw(key, state):
        def one(key, state, tuned):
            def step(state, key):
                state, _ = kernel(key, state, density, tuned["step_size"], tuned["inverse_mass_matrix"])
                return state, state.position

            return jax.lax.scan(step, state, jax.random.split(key, BLOCK))

        state, positions = jax.vmap(one)(jax.random.split(key, CHAINS), state, tuned)
        return state, jax.vmap(jax.vmap(info.postprocess_fn(Y, SIGMA)))(positions)

    number = 0

    def block():
        nonlocal state, number
        number += 1
        state, draws = draw(jax.random.fold_in(keys[0], number), state)
        return draws

    block()
    return block


def rate(block, seconds):
    """Median effective sample size of the sites, per CPU second."""
    found, start = [], time.process_time()
    while time.process_time() - start < seconds:
        found.append({name: np.asarray(v) for name, v in block().items() if name in ("mean", "spread", "offset")})
    spent = time.process_time() - start
    draws = {name: np.concatenate([part[name] for part in found], axis=1) for name in found[0]}
    each = np.concatenate([np.ravel(v) for v in ess(draws, "bulk").values()])
    return float(np.median(each) / spent)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    pairs = {"numpyro": (NUTS, numpyro_directly), "blackjax": (blackjax_kernels.NUTS(), blackjax_directly)}
    for name, (kernel, directly) in pairs.items():
        one, other = ours(kernel), directly()
        rates = [(rate(one, args.seconds), rate(other, args.seconds)) for _ in range(args.runs)]
        ratio = float(np.median([a / b for a, b in rates]))
        mine, theirs = np.median(rates, axis=0)
        record(f"mcmc, eight schools, {name} NUTS", runs=args.runs, ess_per_cpu_s=mine, library=theirs, ratio=ratio)


if __name__ == "__main__":
    main()
