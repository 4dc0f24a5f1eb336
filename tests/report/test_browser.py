"""The report in headless Chromium: no errors, the sliders move the map, a selection can be saved.

Needs the package playwright and a Chromium: its own, or the program that HETMODELS_CHROMIUM names.
"""

import os
import shutil
import time

import numpy as np
import pytest
import starfile
from made_runs import made_run

from hetmodels.cli import main

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

GRAPHICS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


def chromium():
    named = (os.environ.get("HETMODELS_CHROMIUM"), shutil.which("chromium"), shutil.which("google-chrome"))
    return next((path for path in named if path), None)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=chromium(), args=GRAPHICS)
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium to open the report with: {error.message.splitlines()[0]}")
        yield found
        found.close()


class Opened:
    """A page with what it complained of and asked for."""

    def __init__(self, browser, path, scheme="light"):
        self.page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme=scheme)
        self.complaints, self.requests = [], []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        begun = time.monotonic()
        self.page.goto(f"file://{path.absolute()}")
        self.page.wait_for_selector("body[data-ready=yes]", state="attached", timeout=60_000)
        self.seconds = time.monotonic() - begun

    def particles(self):
        """The plot of the particles, brought into view."""
        found = self.page.locator("#scatter")
        found.scroll_into_view_if_needed()
        self.page.wait_for_selector("#scatter[data-chosen]", timeout=60_000)
        return found

    def moved(self, control, value):
        """A picture of the viewer after a slider was moved."""
        self.page.locator(control).evaluate(
            "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }",
            str(value),
        )
        return self.page.locator("#viewer").screenshot()

    def saved(self, button, folder):
        with self.page.expect_download() as waiting:
            self.page.locator(button).click()
        path = folder / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    run, result = made_run(tmp_path_factory.mktemp("report") / "run", classes=3)
    assert main(["analyze", str(run.path)]) == 0
    return run, result


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_complaint_or_network(browser, classes, scheme):
    opened = Opened(browser, classes[0].report, scheme)
    opened.particles()
    assert not opened.complaints
    assert all(url.startswith(("file:", "data:", "blob:")) for url in opened.requests)
    assert opened.page.locator("#viewer canvas").count() >= 1 and opened.page.locator("#scatter canvas").count() >= 1


def test_the_sliders_move_the_map(browser, classes):
    opened = Opened(browser, classes[0].report)
    first = opened.moved("#step", 0)
    second = opened.moved("#step", 2)
    assert opened.page.locator("#state-label").inner_text().startswith("class 3")
    sharp = opened.moved("#level", 2.5)
    assert len({first, second, sharp}) == 3 and opened.moved("#step", 2) == sharp
    opened.moved("#level", 1)
    assert opened.moved("#step", 0) == first and not opened.complaints


def test_a_selection_is_saved_as_rows_and_as_a_star_file(browser, classes, tmp_path):
    run, result = classes
    opened = Opened(browser, run.report)
    opened.particles()
    opened.page.locator("#chips button").nth(1).click()
    wanted = np.flatnonzero(result.local["responsibilities"].argmax(1) == 1)
    assert opened.page.locator("#chosen").inner_text() == f"{len(wanted)} of 200 selected"
    np.testing.assert_array_equal(np.loadtxt(opened.saved("#save-rows", tmp_path)), wanted)
    star = starfile.read(opened.saved("#save-star", tmp_path))
    before = starfile.read(run.path / "input.star")
    assert list(star) == ["optics", "particles"]
    assert star["particles"]["rlnImageName"].tolist() == before["particles"]["rlnImageName"][wanted].tolist()
    assert list(star["particles"]) == list(before["particles"])
    opened.page.locator("#clear").click()
    assert opened.page.locator("#save-rows").is_disabled() and not opened.complaints


def test_points_are_selected_with_the_mouse(browser, classes, tmp_path):
    opened = Opened(browser, classes[0].report)
    box = opened.particles().locator(".nsewdrag").first.bounding_box()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.03)]
    mouse = opened.page.mouse
    for i, (x, y) in enumerate(corners):
        mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
        mouse.down() if i == 0 else None
    mouse.up()
    opened.page.wait_for_function("Number(document.getElementById('scatter').dataset.chosen) > 150")
    assert len(np.loadtxt(opened.saved("#save-rows", tmp_path))) > 150 and not opened.complaints


def test_axes_and_colours_can_be_chosen_and_motions_too(browser, tmp_path):
    run, _ = made_run(tmp_path / "run", dims=2)
    assert main(["analyze", str(run.path)]) == 0
    opened = Opened(browser, run.report)
    opened.particles()
    names = opened.page.locator("#colour option").all_inner_texts()
    for name in names:
        opened.page.locator("#colour").select_option(label=name)
    opened.page.locator("#up").select_option(label="log likelihood [nats]")
    before = opened.page.locator("#viewer").screenshot()
    opened.page.locator("#series").select_option(label="motion 2")
    assert opened.moved("#step", 8) != before
    assert not opened.complaints and {"latent 1", "defocus [µm]", "view tilt [°]", "use"} <= set(names)


@pytest.mark.slow
def test_ten_thousand_particles_fit_in_fifteen_megabytes_and_open_in_two_seconds(browser, tmp_path):
    run, _ = made_run(tmp_path / "run", count=10_000, classes=8)
    begun = time.monotonic()
    assert main(["analyze", str(run.path)]) == 0
    assert time.monotonic() - begun < 60
    assert run.report.stat().st_size < 15e6
    assert min(Opened(browser, run.report).seconds for _ in range(3)) < 2
