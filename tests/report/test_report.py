"""The report is one file that needs nothing else, and says what the run supports and no more."""

import base64
import dataclasses
import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import starfile
from made_runs import PIXEL, made_run, states

from hetmodels.analysis.image_check import ImageCheck
from hetmodels.analysis.leakage import Leakage
from hetmodels.cli import analyze, main, parse
from hetmodels.families import Classes
from hetmodels.report import conformations, headline, particles
from hetmodels.report.source import Sampler
from hetmodels.report.states import packed, shown


class Addresses(HTMLParser):
    """What the elements of a page point to, and the ids there are."""

    def __init__(self, text):
        super().__init__()
        self.found, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "action", "srcset")]
        self.ids |= {value for name, value in attributes if name == "id"}


def source_of(run, *options):
    return analyze.gather(run, parse("analyze", analyze, [str(run.path), *options]))


def payload(run):
    text = run.report.read_text()
    return json.loads(re.search(r'id="payload">(.*?)</script>', text, re.S).group(1))


def unpacked(text, kind):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), kind)


def test_the_page_points_at_nothing_outside_and_holds_the_particles(tmp_path, capsys):
    run, result = made_run(tmp_path / "run")
    assert main(["analyze", str(run.path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["flagged"] == {"junk": 8} and answer["answers"]["States"]["value"] == "3 of 3 classes"
    page = Addresses(run.report.read_text())
    assert all(a.startswith(("#", "data:")) for a in page.found) and {"viewer", "scatter"} <= page.ids
    assert {a[1:] for a in page.found if len(a) > 1 and a[0] == "#"} <= page.ids
    found = payload(run)["particles"]
    numbers = unpacked(found["data"], np.float32).reshape(-1, 200)
    np.testing.assert_array_equal(numbers[0], np.arange(200))
    columns = dict(zip(found["names"], numbers[1:], strict=True))
    np.testing.assert_array_equal(columns["class"], result.local["responsibilities"].argmax(1))
    np.testing.assert_allclose(columns["log likelihood [nats]"], result.local["log_evidence"], rtol=1e-6)
    assert found["labels"][found["names"].index("flag")] == ["not flagged", "junk"]
    star = tmp_path / "all.star"
    star.write_bytes(gzip.decompress(base64.b64decode(found["star"])))
    back, before = (starfile.read(p)["particles"] for p in (star, run.path / "input.star"))
    assert list(back) == list(before) and len(back) == 200


def test_maps_travel_as_bytes_of_one_scale(tmp_path):
    run, _ = made_run(tmp_path / "run")
    found = shown(source_of(run))
    data = packed(found)
    size = data["size"]
    cubes = unpacked(data["maps"], np.int8).reshape(3, size, size, size)
    every = [state.values for state in found.series[0].states]
    top = max(np.abs(v).max() for v in every)
    cut = (slice(12 - size // 2, 12 + size // 2),) * 3
    for cube, values in zip(cubes, every, strict=True):
        np.testing.assert_allclose(cube.transpose(2, 1, 0) * top / 127, values[cut], atol=top / 254 * 1.01)
        assert np.abs(values).sum() == pytest.approx(np.abs(values[cut]).sum(), rel=0.2)
    assert 0.05 * 127 < data["level"] < 127 and data["spacing"] == PIXEL
    assert [label.split(" (")[0] for label in data["series"][0]["labels"]] == ["class 1", "class 2", "class 3"]


def test_continuous_latents_are_shown_along_their_principal_axes(tmp_path):
    run, result = made_run(tmp_path / "run", dims=2)
    result.local["mean"][:, 0] *= 3
    result.save(run.posterior)
    source = source_of(run)
    first, second, way = shown(source).series
    assert [s.name for s in (first, second)] == ["motion 1", "motion 2"] and len(first.states) == 9
    assert way.name == "way through particles" and source.clusters is not None and len(source.clusters) == 1
    ends = first.states[-1].values - first.states[0].values
    way = states()[1] - states()[0]
    assert abs(np.corrcoef(ends.ravel(), way.ravel())[0, 1]) > 0.95
    np.testing.assert_allclose(source.reliability, [9 / 9.04, 1 / 1.04], rtol=0.03)
    assert headline.states(source).value == "continuous"
    assert [c.name for c in particles.columns(source)][:2] == ["latent 1", "latent 2"]
    assert main(["analyze", str(run.path)]) == 0


def test_clusters_and_the_way_between_them_are_shown(tmp_path):
    run, result = made_run(tmp_path / "run", dims=2)
    side = np.arange(200) % 2
    result.local["mean"][:] = 0.25 * result.local["mean"] + np.where(side, 1.2, -1.2)[:, None] * [1.0, 0.2]
    result.save(run.posterior)
    source = source_of(run)
    assert [s.name for s in shown(source).series][2:] == ["path of least energy", "way through particles"]
    ends = [s.values for s in shown(source).series[2].states]
    way = states()[1] - states()[0]
    assert abs(np.corrcoef((ends[-1] - ends[0]).ravel(), way.ravel())[0, 1]) > 0.9
    text = conformations.of_clusters(source).words[0]
    assert "2 clusters" in text and "Do not rely" not in text
    column = next(c for c in particles.columns(source) if c.name == "cluster")
    assert column.labels == ("cluster 1", "cluster 2") and np.ptp(column.values[side == 1]) == 0
    words, pictures = (lambda s: (s.words[0], s.figures))(conformations.of_way(source))
    assert "has 2 basins" in words and len(pictures) == 2 and all(p.svg.startswith("<svg") for p in pictures)
    chosen = tmp_path / "one.star"
    assert main(["select", str(run.path), "--cluster", "1", "-o", str(chosen)]) == 0
    assert len(starfile.read(chosen)["particles"]) == (column.values == 0).sum() == 100
    assert main(["select", str(run.path), "--cluster", "3", "-o", str(tmp_path / "no.star")]) == 1


def checked(gain, se, shells=12):
    one = np.ones(shells)
    return ImageCheck(
        np.arange(shells) / 144, one, one, 0.1 * one, np.arange(50), np.ones(50), np.eye(3)[np.arange(50) % 3], gain, se
    )


@pytest.mark.parametrize(
    ("gain", "se", "value", "following"),
    [
        (4.0, 0.5, "yes", "look and select"),
        (0.4, 0.5, "not shown", "go simpler"),
        (-3.0, 0.5, "no", "go simpler"),
        (None, None, "not tested", "look and select"),
    ],
)
def test_the_answer_follows_from_held_out_images(tmp_path, gain, se, value, following):
    run, _ = made_run(tmp_path / "run")
    source = dataclasses.replace(source_of(run), images=checked(gain, se))
    assert headline.reality(source).value == value and headline.following(source).value == following
    wrong = dataclasses.replace(source, warnings=("R-hat is above 1.01.",))
    assert headline.following(wrong).value == "mend the run"
    assert headline.reality(wrong).value == ("in part" if value == "yes" else value)
    leaking = Leakage(30.0, 1.0, {"defocus": 0.4}, ("The latents follow the defocus.",))
    assert headline.reality(dataclasses.replace(source, leakage=leaking)).value != "yes"


def test_half_sets_that_found_other_classes_are_named(tmp_path):
    maps = states()
    halves = np.stack([maps, maps[[0, 2, 1]]])
    run, _ = made_run(tmp_path / "run", extra={"half_maps": halves.astype(np.float32)})
    words = source_of(run).half_words
    assert "classes 2, 3" in words and "1" not in words.split("already")[0]
    assert headline.resolution(source_of(run)).mood != "good"


def test_chains_are_shown_with_what_is_wrong(tmp_path):
    rng = np.random.default_rng(0)
    draws = {"weights": rng.dirichlet(np.ones(3), (4, 100)), "noise": 1 + 0.1 * rng.normal(size=(4, 100, 1, 12))}
    draws["weights"][0] = [0.8, 0.1, 0.1]  # a chain of its own
    draws["maps"] = np.broadcast_to(states(), (4, 100, 3, 24, 24, 24)).astype(np.float32)
    stats = {"energy": rng.normal(size=(4, 100)), "diverging": np.zeros((4, 100), bool)}
    run, _ = made_run(tmp_path / "run", shared=draws, point=False, stats=stats)
    source = source_of(run)
    assert isinstance(source.sampler, Sampler) and any("R-hat" in w for w in source.warnings)
    worst = next(iter(source.sampler.table))
    assert worst.startswith("weights") and source.sampler.draws[worst].shape == (4, 100)
    place = int(re.search(r"(\d)\]", worst).group(1)) - 1
    np.testing.assert_array_equal(source.sampler.draws[worst], draws["weights"][..., place])
    assert main(["analyze", str(run.path)]) == 0
    text = run.report.read_text()
    assert "rank among all chains" in text and 'class="number bad"' in text and "What is wrong" in text


@pytest.mark.parametrize(
    ("spoil", "status", "message"),
    [
        (lambda run: run.posterior.unlink(), 1, "no result yet"),
        (
            lambda run: run.particles.write_text("data_\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n2@a.mrcs\n"),
            1,
            "same particles",
        ),
        (lambda run: run.report.mkdir(), 2, "is a folder"),
    ],
)
def test_a_run_that_cannot_be_reported_says_why(tmp_path, capsys, spoil, status, message):
    run, _ = made_run(tmp_path / "run")
    spoil(run)
    assert main(["analyze", str(run.path)]) == status
    assert message in capsys.readouterr().err


def test_a_missing_library_is_named_with_its_cure(tmp_path, capsys, monkeypatch):
    run, _ = made_run(tmp_path / "run")
    monkeypatch.setattr(analyze, "LIBRARIES", ("jinja2", "not_a_library"))
    assert main(["analyze", str(run.path)]) == 2
    assert "pip install not_a_library" in capsys.readouterr().err


def test_many_particles_are_thinned_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(particles, "MOST", 100)
    run, _ = made_run(tmp_path / "run")
    found = particles.packed(source_of(run))
    assert (found["count"], found["of"], found["star"]) == (100, 200, None)
    assert isinstance(source_of(run).posterior.family, Classes)
