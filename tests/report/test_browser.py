"""The page in a real browser: drawn, quiet, offline, legible on screen and paper; evil text is inert."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwell.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NewRun = Callable[..., Any]
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
)
EVIL = "<script>window.owned = 1</script><img src=x onerror='window.owned = 2'>"


def chromium() -> str | None:
    """The browser named in CHROMIUM, or one where systems keep it."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    places = [os.environ.get("CHROMIUM"), "/usr/bin/chromium", *(shutil.which(name) for name in names)]
    return next((place for place in places if place and Path(place).exists()), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None:
        reason = "no Chromium: install it, or name it in the environment variable CHROMIUM"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


class Visit:
    """A page, opened, with all it said and asked for."""

    def __init__(self, browser: Any, report: Path, *, width: int = 1100, scheme: str = "light", script: bool = True):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
        )
        self.page, self.said, self.asked = context.new_page(), [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(report.as_uri())
        if script:
            self.page.wait_for_selector("html[data-drawn=yes]", timeout=60_000)

    def style(self, selector: str, name: str) -> str:
        return self.page.eval_on_selector(selector, f"found => getComputedStyle(found).getPropertyValue('{name}')")


def brightness(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, new_run_in: Callable[..., Any]) -> Path:
    return write_report(new_run_in(tmp_path_factory.mktemp("report")).whole())


def test_it_draws_every_chart_in_silence_and_asks_for_nothing(browser: Any, report: Path):
    visit = Visit(browser, report)
    assert visit.said == [] and visit.asked == [report.as_uri()]
    assert visit.page.locator(".chart").count() == 15
    assert visit.page.locator(".chart svg.main-svg").count() >= 15
    for text in ("What does a continuous thought buy?", "yes, at 95% confidence", "no finding", "flat-loss"):
        assert visit.page.get_by_text(text).first.is_visible(), text
    axis = visit.page.locator("#chart-accuracy-test .ytick text").all_text_contents()
    assert axis == [
        "cot",
        "direct",
        "continuous",
        "shared",
        "removal",
        "another-person",
        "lower-in-degree",
        "first-named",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colour_scheme(browser: Any, report: Path, scheme: str):
    visit = Visit(browser, report, scheme=scheme)
    paper = brightness(visit.style("body", "background-color"))
    inks = [brightness(visit.style(selector, "color")) for selector in ("body", ".over", "td .t-go", ".answer")]
    inks.append(brightness(visit.style(".chart .ytick text", "fill")))
    if scheme == "light":
        assert paper > 240 and max(inks) < 130
    else:
        assert paper < 40 and min(inks) > 130
    line = visit.style("#chart-validation-cot .js-line", "stroke")
    assert line == ("rgb(0, 114, 178)" if scheme == "light" else "rgb(79, 163, 220)")
    assert visit.style("#chart-validation-cot .plot-container svg", "background-color") == "rgba(0, 0, 0, 0)"


def test_a_narrow_screen_scrolls_tables_and_not_the_page(browser: Any, report: Path):
    visit = Visit(browser, report, width=400)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 400
    assert visit.page.eval_on_selector(".scroll", "found => found.scrollWidth > found.clientWidth")
    assert visit.page.eval_on_selector(".chart", "found => found.getBoundingClientRect().right <= 400")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_is_white_and_charts_fit_it(browser: Any, report: Path, scheme: str):
    visit = Visit(browser, report, scheme=scheme)
    visit.page.emulate_media(media="print", color_scheme=scheme)
    assert visit.style("body", "background-color") == "rgb(255, 255, 255)"
    assert brightness(visit.style("body", "color")) < 10
    assert visit.style("#chart-validation-cot .js-line", "stroke") == "rgb(0, 114, 178)"
    assert visit.style("nav", "display") == "none"
    visit.page.set_viewport_size({"width": 680, "height": 900})
    assert visit.page.evaluate(
        "[...document.querySelectorAll('.main-svg')].every(found => found.getBoundingClientRect().right <= 681)"
    )
    assert visit.page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_without_scripts_the_numbers_are_there(browser: Any, report: Path):
    visit = Visit(browser, report, script=False)
    assert visit.page.get_by_text("its numbers stand in the table").first.is_visible()
    assert visit.page.locator("#accuracy table").first.is_visible()
    visit.page.locator("details summary").first.click()
    assert visit.page.locator("details table").first.is_visible()


def test_evil_text_is_shown_and_does_nothing(browser: Any, new_run: NewRun):
    run = new_run(items=20)
    run.whole(sets=("test", f"set {EVIL}"), prediction=f"</script>{EVIL}")
    run.plan(title=EVIL, question=EVIL, axes={"arm": ["cot", EVIL], "seed": [0]})
    run.lines("records/audit.jsonl", [{"kind": "shortcut", "set": "test", "rule": EVIL, "correct": 7, "n": 20}])
    step = {"kind": "step", "arm": EVIL, "seed": EVIL, "curriculum_stage": EVIL}
    run.lines("records/train.evil.0.jsonl", [{**step, "step": n, "loss": 1.0} for n in range(5)])
    run.policy([{"reason": EVIL, "changes": [EVIL], "replaced_sha256": "0"}])
    report = write_report(run.path)
    visit = Visit(browser, report)
    assert visit.page.evaluate("window.owned") is None
    assert visit.said == [] and visit.asked == [report.as_uri()]
    assert visit.page.locator("img").count() == 0
    assert visit.page.locator("h1").text_content() == EVIL
    assert any("<script>" in text for text in visit.page.locator(".ytick text").all_text_contents())
