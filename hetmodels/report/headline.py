"""The four answers at the top of a report: how sharp, how many states, are they real, what next."""

import dataclasses
import shlex
from typing import Any

import numpy as np

from hetmodels.report.source import Source

SHARE, RELIABLE, SURE = 0.01, 0.5, 3.0  # a class that counts; an axis that images tell; standard errors


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        question: what a reader asks.
        value: the answer in a word or a number.
        words: a sentence on it.
        mood: good, doubtful or open, for the colour.
        commands: lines to type.
    """

    question: str
    value: str
    words: str
    mood: str = "open"
    commands: tuple[str, ...] = ()


def answers(source: Source) -> list[Answer]:
    """The answers in the order of reading."""
    return [resolution(source), states(source), reality(source), following(source)]


def resolution(source: Source) -> Answer:
    """How sharp the maps are."""
    metrics, question = source.metrics, "Resolution"
    limit = 2 * float(source.posterior.provenance.get("spacing", 0)) or None
    at_limit = ""
    if metrics.get("resolution_0143"):
        value = float(metrics["resolution_0143"])
        if limit and value < 1.15 * limit:
            at_limit = " This is the limit of the box: a larger `--box` may show more."
        return Answer(question, f"{value:.1f} Å", f"Between half maps at FSC 0.143, inside a mask.{at_limit}", "good")
    if metrics.get("class_resolution_0143"):
        found = sorted(float(v) for v in metrics["class_resolution_0143"])
        span = f"{found[0]:.1f}–{found[-1]:.1f} Å" if len(found) > 1 else f"{found[0]:.1f} Å"
        words = "Of the classes, between half maps at FSC 0.143, inside a mask."
        if source.half_words:
            return Answer(question, span, f"{words} {source.half_words.partition(':')[0]}.", "doubtful")
        return Answer(question, span, words, "good")
    if source.dims and metrics.get("half_fsc_departures"):
        return _of_halves(metrics)
    trace = source.posterior.trace
    guess = trace[-1].get("resolution") if trace else None
    more = f" The model itself expects {guess:.1f} Å." if guess else ""
    cure = f"`hetmodels validate {source.run.path}` fits them" if source.dims else "`--halves` keeps them"
    return Answer(question, "not measured", f"The run kept no half sets; {cure}.{more}")


def _of_halves(metrics: dict[str, Any]) -> Answer:
    """How far two models of half sets agree on what differs between particles (`hetmodels validate`)."""
    edge, cosines = metrics.get("half_departures_resolution_0143"), metrics.get("half_component_cosines")
    mean = sum(metrics["half_fsc_departures"]) / len(metrics["half_fsc_departures"])
    words = f"Of departures from the mean map, fitted to each half of the particles alone; mean FSC {mean:.2f}."
    if cosines:
        words += f" {metrics['half_components_found']} of {len(cosines)} components are found by both."
    value = "not reproduced" if edge is None else f"{edge:.1f} Å"
    return Answer("Resolution", value, words, "good" if edge is not None and mean > 0.3 else "doubtful")


def states(source: Source) -> Answer:
    """How many states the run describes."""
    question = "States"
    if source.classes:
        nodes = source.posterior.local["responsibilities"]
        shares, sure = nodes.mean(0), nodes.max(1)
        kept = int((shares >= SHARE).sum())
        listed = ", ".join(f"{100 * s:.0f} %" for s in shares[:8]) + (" …" if len(shares) > 8 else "")
        words = f"Shares {listed}. A particle is in its class with a probability of {np.median(sure):.2f} (median)."
        return Answer(question, f"{kept} of {len(shares)} classes", words, "good" if np.median(sure) > 0.8 else "open")
    if source.dims:
        told = int((source.reliability > RELIABLE).sum())
        listed = ", ".join(f"{100 * r:.0f} %" for r in source.reliability[:6])
        words = f"Reliability of the coordinates: {listed}. {told} of {source.dims} are more signal than uncertainty."
        nodes, value = source.posterior.local["responsibilities"], "continuous"
        if nodes.shape[1] > 1 and not hasattr(source.posterior.family, "grids"):
            value = f"continuous, about {nodes.shape[1]} places"
            shares = ", ".join(f"{100 * share:.0f} %" for share in nodes.mean(0))
            words += f" The latents' Gaussians have shares {shares}; a particle's own holds it with probability "
            words += f"{np.median(nodes.max(1)):.2f} (median)."
        return Answer(question, value, words, "good" if told else "doubtful")
    return Answer(question, "one map", "This family gives every particle the same map.")


def reality(source: Source) -> Answer:
    """Whether held-out images support the heterogeneity."""
    question, check = "Are they real?", source.images
    if not (source.classes or source.dims):
        return Answer(question, "not asked", "Fit a family with heterogeneity and compare it with this run.")
    if isinstance(check, str):
        return Answer(question, "not tested", f"It takes the images: {check}")
    if check.gain is None or check.gain_se is None:
        return Answer(
            question, "not tested", "This needs held-out images at known poses; `hetmodels compare` asks too."
        )
    size = f"{abs(check.gain):.1f} ± {check.gain_se:.1f} nats"
    less = (
        f"Images that did not train are {size} each {'more' if check.gain > 0 else 'less'} probable than under one map"
    )
    caution = f" But {source.doubts}." if source.doubts else ""
    if check.gain > SURE * check.gain_se:
        value, mood = ("in part", "doubtful") if caution else ("yes", "good")
        return Answer(question, value, f"{less}, the mean of these.{caution}", mood)
    if check.gain < -SURE * check.gain_se:
        return Answer(question, "no", f"{less}, the mean of these: the differences are noise.", "doubtful")
    return Answer(question, "not shown", f"{less}, the mean of these, which may be chance.", "doubtful")


def following(source: Source) -> Answer:
    """What to do next."""
    run = shlex.quote(str(source.run.path))
    question, check = "What next", source.images
    tested = not isinstance(check, str) and check.gain is not None and check.gain_se is not None
    unreal = tested and check.gain <= SURE * check.gain_se  # type: ignore[union-attr, operator]
    if source.warnings or source.half_words:
        return Answer(question, "mend the run", (*source.warnings, source.half_words)[0], "doubtful")
    if source.classes and not unreal:
        commands = (
            f"hetmodels volumes {run} -o maps --classes",
            f"hetmodels select {run} --class 1 --min-probability 0.9 -o class1.star",
        )
        return Answer(
            question, "look and select", "Open the maps in ChimeraX; take a class to a refinement.", "open", commands
        )
    if source.dims and not unreal:
        commands = (f"hetmodels volumes {run} -o maps --along 1 -n 10", "chimerax maps/volumes.cxc")
        return Answer(
            question, "watch the motion", "Look at the motions; select a region in the plot below.", "open", commands
        )
    if source.classes or source.dims:
        words = "Fewer classes or dimensions, or one map, describe these data as well. More particles may change that."
        return Answer(question, "go simpler", words, "open", ("hetmodels families",))
    particles = shlex.quote(str(source.settings.get("particles", "particles.star")))
    commands = (
        f"hetmodels fit {particles} --family classes --set family.classes=4 -o classes",
        f"hetmodels compare {run} classes",
    )
    return Answer(question, "look for states", "Fit classes to the same particles and compare.", "open", commands)
