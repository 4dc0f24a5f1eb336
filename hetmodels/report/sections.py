"""What stands under each heading of a report."""

import dataclasses
from typing import Any

import numpy as np

from hetmodels.analysis.image_check import ImageCheck
from hetmodels.report import figures, states
from hetmodels.report.source import Source

RHAT, ESS = 1.01, 400


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure with its caption."""

    svg: str
    caption: str
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; `bad` names cells (column, first cell of the row) that need attention."""

    heads: list[str]
    rows: list[list[str]]
    numbers: bool = True
    bad: frozenset[tuple[int, str]] = frozenset()


@dataclasses.dataclass(frozen=True)
class Text:
    """A text to fold out."""

    title: str
    text: str
    open: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """What stands under one heading."""

    key: str
    title: str
    words: list[str]
    figures: list[Picture] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)
    texts: list[Text] = dataclasses.field(default_factory=list)


def of_maps(source: Source, shown: states.Shown) -> Section:
    """The maps, in three dimensions and as pictures."""
    cut = "" if shown.resolution is None else f", low-passed to {shown.resolution:.1f} Å"
    words = [f"Shown at {shown.spacing:.2f} Å per voxel{cut}; the maps themselves are in {source.run.volumes}."]
    if source.dims:
        words.append(
            "A motion is a principal axis of the particles' latents, gone through from the 5th to the 95th percentile. "
            "The way through particles goes from each to a similar one, by the change of the map."
        )
    return Section("maps", "Maps", words)


def of_particles(source: Source, points: dict[str, Any]) -> Section:
    """The plot to select from."""
    words = [
        "Each point is a particle. Circle points with the mouse, or press a label, and save the selection: row numbers "
        "count from 0; the STAR file has the rows of the input as they came, for RELION or a further fit."
    ]
    if points["star"] is None:
        words.append(
            "The table is too long to travel in this page, or holds further loops: save row numbers, or use "
            "`hetmodels select`."
        )
    return Section("particles", "Particles", words)


def of_certainty(source: Source) -> Section | None:
    """How well the images determine each particle's state."""
    local = source.posterior.local
    if source.classes:
        sure = local["responsibilities"].max(1)
        chance = 1 / source.classes
        words = [
            f"{100 * np.mean(sure > 0.9):.0f} % of the particles are in their class with a probability above 0.9, "
            f"{100 * np.mean(sure < 0.5 + 0.5 * chance):.0f} % are about as likely elsewhere. These probabilities hold "
            "if the maps and the noise are right."
        ]
        shares, order = local["responsibilities"].mean(0), local["responsibilities"].argmax(1)
        rows = [
            [f"class {k + 1}", f"{100 * shares[k]:.1f} %", str(int((order == k).sum())), _mean(sure[order == k], 2)]
            + [_mean(local["log_evidence"][order == k], 1)]
            for k in range(source.classes)
        ]
        heads = ["class", "share", "particles", "mean probability", "mean log likelihood [nats]"]
        figure = figures.histogram({"": sure}, "probability of the particle's class")
        caption = "Certainty of the assignments; a heap at the right end is good."
        words += _leaks(source)
        return Section("certainty", "Certainty", words, [Picture(figure, caption)], [Table(heads, rows)])
    if source.dims:
        words = [
            "The images tell a particle's place along an axis as well as its standard deviation is small against the "
            "spread of all particles. Of an axis below 50 % reliability a single particle's value says little."
        ]
        sd, spread = source.latent_sd, local["mean"].std(0)
        rows = [
            [
                f"latent {k + 1}",
                f"{spread[k]:.3g}",
                f"{np.median(sd[:, k]):.3g}",
                f"{100 * source.reliability[k]:.0f} %",
            ]
            for k in range(source.dims)
        ]
        heads = ["coordinate", "spread of the particles", "median sd of one", "reliability"]
        named = {f"latent {k + 1}": sd[:, k] / max(spread[k], 1e-30) for k in range(min(source.dims, 4))}
        figure = figures.histogram(named, "standard deviation / spread of the particles")
        caption = "Uncertainty of each particle's coordinates against their spread."
        words += _leaks(source)
        return Section("certainty", "Certainty", words, [Picture(figure, caption)], [Table(heads, rows)])
    return None


def _leaks(source: Source) -> list[str]:
    return [] if source.leakage is None else list(source.leakage.words)


def _mean(values: np.ndarray, digits: int) -> str:
    return f"{values.mean():.{digits}f}" if len(values) else "–"


def of_resolution(source: Source) -> Section:
    """Shell correlations and convergence."""
    pictures: list[Picture] = []
    words: list[str] = []
    curves = source.half_curves
    if curves:
        svg = figures.shell_curves(curves, 0.143, "Fourier shell correlation")
        pictures.append(Picture(svg, "Between half maps, masked and freed of what the mask adds; dashed: 0.143."))
        words += [source.half_words] if source.half_words else []
    else:
        words.append("The run kept no half sets, so its resolution cannot be measured from within.")
    trace = source.posterior.trace
    svg = figures.convergence(trace)
    if svg:
        last = [row["objective"] for row in trace[-2:] if row.get("objective") is not None]
        same = len({row.get("stage") for row in trace[-2:]}) == 1
        still = f" The last one added {last[1] - last[0]:.2g} nats to the objective." if len(last) > 1 and same else ""
        caption = f"Convergence over {len(trace)} passes.{still}"
        if source.sampler is not None and any(row.get("stage") == "sampling" for row in trace):
            warm = sum(row.get("stage") == "warm-up" for row in trace)
            caption = (
                f"Mean log density per particle of the draws in {len(trace)} blocks, the first {warm} of them warm-up. "
                "Where chains have settled it is level but for noise; it does not rise to an end."
            )
        pictures.append(Picture(svg, caption))
    return Section("resolution", "Resolution and convergence", words, pictures)


def of_images(source: Source) -> Section:
    """Directions of view, and what is left of the images."""
    rotation = source.posterior.local["rotation"]
    view = rotation[:, 2]
    tensor = np.linalg.eigvalsh(np.einsum("ni,nj->ij", view, view) / len(view))
    pictures = [Picture(figures.sphere(view), "Directions of view on the half sphere, equal areas; centre: along z.")]
    words = [_views_in_words(tensor)]
    check = source.images
    if isinstance(check, str):
        return Section("images", "Views and images", [*words, f"The images were not looked at: {check}"], pictures)
    words.append(_residuals_in_words(check))
    pictures.append(Picture(figures.residuals(check), "Residual power over noise per shell; 1 is right."))
    svg = figures.sphere(check.view, check.of_image, "residual power / noise")
    pictures.append(Picture(svg, "The same by direction of view; a view that stands out is badly described."))
    return Section("images", "Views and images", words, pictures)


def _residuals_in_words(check: ImageCheck) -> str:
    """Whether what the model leaves of the images is noise; half the gap to training images is the maps' own error."""
    known = np.isfinite(check.held_out) & (check.frequency > 0)
    head = f"What the model leaves of {len(check.rows)} images was compared with the noise."
    if not known.any():
        return f"{head} None of them was held out, so little can be said."
    away = np.abs(check.held_out - 1)[known]
    allowed = check.band[known] + np.nan_to_num(np.abs(check.training - 1)[known])
    out = away > allowed
    if not out.any():
        return f"{head} It is noise in every shell, as far as these images tell."
    worst = 1 / check.frequency[known][int(np.argmax(away - allowed))]
    return (
        f"{head} In {int(out.sum())} of {len(out)} shells it differs from noise, by up to {100 * away[out].max():.1f} "
        f"% of its power, most clearly at {worst:.1f} Å: above 1 something in the images is not described (poses, CTF, "
        "contrast, further states), below 1 the noise is overestimated."
    )


def _views_in_words(tensor: np.ndarray) -> str:
    low, high = tensor[0], tensor[-1]
    even = "The views are spread evenly" if low > 0.22 else "The views are uneven"
    if low < 0.1:
        even = "The views lie near one plane or axis: expect maps smeared in one direction"
    return f"{even} (shares of the three main directions: {low:.2f} to {high:.2f}; even is 0.33)."


def of_flags(source: Source) -> Section:
    """Particles that need a second look."""
    if not source.flags:
        return Section("flags", "Flagged particles", ["No particle stands out as junk or as badly described."])
    rows = [
        [f.name, f"{int(f.rows.sum())} ({100 * f.rows.mean():.1f} %)", f.words] for f in source.flags
    ]  # fmt: skip
    words = ["Choose the colour “flag” in the plot above to see and save them. None was left out of the fit."]
    if str(source.posterior.provenance.get("outliers", "None")) == "None":
        words.append("The run had no junk component; `--outliers` adds one.")
    elif any(f.name == "junk" for f in source.flags):
        words.append(
            "A rare state that no class describes is taken for junk in part. See whether the junk has a map: `select … "
            "--min-outlier 0.5`, fit one map to that, and fit one more class to all particles with that map as its "
            "`--reference`."
        )
    return Section("flags", "Flagged particles", words, tables=[Table(["flag", "particles", ""], rows, False)])


def of_sampler(source: Source) -> Section | None:
    """Chains: trace, ranks, energy and the table of R-hat and effective sample sizes."""
    sampler = source.sampler
    if sampler is None:
        return None
    words = ["Draws can be trusted when the chains lie over each other, ranks are flat, and no number below is marked."]
    pictures = [Picture(figures.traces(sampler), "Draws and ranks of some numbers; one colour per chain.", True)]
    if sampler.energy is not None and sampler.energy.shape[1] > 3:
        caption = "Energy and its change from draw to draw: where changes are far narrower, the tails are not reached."
        pictures.append(Picture(figures.energies(sampler.energy), caption))
    names = list(dict.fromkeys(k for row in sampler.table.values() for k in row))
    rows, bad = [], set()
    for label, row in sampler.table.items():
        rows.append([label, *(_number(row.get(k)) for k in names)])
        for place, k in enumerate(names, 1):
            value = row.get(k, np.nan)
            if (k == "r_hat" and value > RHAT) or (k.startswith("ess") and value < ESS):
                bad.add((place, label))
    return Section("sampler", "Chains", words, pictures, [Table(["", *names], rows, True, frozenset(bad))])


def _number(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.4g}"


def _score(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_score(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def of_run(source: Source) -> Section:
    """What was run, and how to repeat it."""
    facts = source.posterior.provenance
    kept = ("engine", "pose", "noise", "contrast", "outliers", "halves", "window", "data_hash", "device", "seconds")
    rows = [[name.replace("_", " "), str(facts[name])] for name in kept if name in facts]
    rows += [[f"{name} version", str(value)] for name, value in facts.get("versions", {}).items()]
    scores = [[name, _score(value)] for name, value in source.metrics.items()]
    return Section(
        "run", "How to repeat this", [],
        tables=[Table(["", ""], rows, False), Table(["score", "value"], scores, False)],
        texts=[Text("Command", source.command, True), Text("config.toml", source.config)],
    )  # fmt: skip
