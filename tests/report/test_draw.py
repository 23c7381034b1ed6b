"""The page: one file, everything inside, every text inert, the same for the same records, whole or not there."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from stepwell.errors import StepwellError
from stepwell.report import draw, write_report
from stepwell.report.cells import Cell, Chart, Column, Row, Series, Table, dash
from stepwell.report.view import view

NewRun = Callable[..., Any]
EVIL = "<script>window.owned = 1</script><img src=x onerror='window.owned = 2'>"
MOST_BYTES = 2_600_000
"""plotly's script is 4.8 MB, 2.0 MB as it is packed; the rest is the run's own."""


@pytest.fixture
def evil_page(new_run: NewRun) -> str:
    run = new_run(items=20)
    run.whole(sets=("test", f"set {EVIL}"), prediction=f"</script>{EVIL}")
    run.plan(title=EVIL, question=f"why {EVIL}", axes={"arm": ["cot", EVIL], "seed": [0]})
    run.lines("records/evaluate.cot.0.jsonl", [{"kind": "alert", "arm": EVIL, "monitor": EVIL, "message": EVIL}])
    step = {"kind": "step", "arm": EVIL, "seed": EVIL, "curriculum_stage": EVIL}
    run.lines("records/train.evil.0.jsonl", [{**step, "step": n, "loss": 1.0} for n in range(5)])
    run.lines("records/audit.jsonl", [{"kind": "shortcut", "set": "test", "rule": EVIL, "correct": 7, "n": 20}])
    run.lines(
        "records/audit.jsonl", [{"kind": "audit", "set": EVIL, "code": EVIL, "count": 1, "of": 2, "example": EVIL}]
    )
    run.policy([{"reason": EVIL, "changes": [EVIL], "replaced_sha256": "0"}])
    run.lines(
        "records/gates.jsonl", [run.verdict(EVIL, "no-go", [run.finding(EVIL, about=EVIL)], override={"reason": EVIL})]
    )
    return write_report(run.path).read_text(encoding="utf-8")


def scripts(text: str) -> list[tuple[str, str]]:
    return re.findall(r"<script([^>]*)>(.*?)</script>", text, flags=re.DOTALL)


def test_one_small_file_that_asks_for_nothing(new_run: NewRun):
    path = write_report(new_run().whole())
    assert path.name == "report.html" and [p.name for p in path.parent.glob("*.html")] == ["report.html"]
    assert path.stat().st_size < MOST_BYTES
    without = re.sub(r'<script type="application/octet-stream".*?</script>', "", path.read_text(), flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)=\"(?!#|data:,)", without)
    assert "http://" not in without and "https://" not in without and "url(" not in without and "@import" not in without


def test_the_same_records_give_the_same_page(new_run: NewRun):
    folder = new_run().whole()
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_plotly_is_packed_whole_and_the_policy_allows_these_two_scripts_only(new_run: NewRun):
    text = write_report(new_run().whole()).read_text(encoding="utf-8")
    (packed,) = (body for kind, body in scripts(text) if "octet-stream" in kind)
    (own,) = (body for kind, body in scripts(text) if not kind)
    plotly = gzip.decompress(base64.b64decode(packed)).decode()
    assert plotly == get_plotlyjs()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    wanted = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in (own, plotly)]
    assert re.findall(r"'sha256-([^']*)'", policy[1]) == wanted
    assert (
        policy[1].startswith("default-src 'none'") and "unsafe-eval" not in policy[1] and "connect-src" not in policy[1]
    )


def test_text_from_models_data_and_plan_is_inert(evil_page: str):
    assert [kind for kind, _ in scripts(evil_page)] == [
        ' type="application/json" id="figures"',
        ' type="application/octet-stream" id="plotly-packed"',
        "",
    ]
    assert "<img" not in evil_page and "onerror='" not in re.sub(r"&#39;", "", evil_page).replace("&lt;", "")
    assert evil_page.count("&lt;script&gt;") > 12
    figures = json.loads(scripts(evil_page)[0][1])
    texts = [text for text in _texts(figures) if "owned" in text]
    # plotly makes elements of some tags and decodes entities: it must be given the latter.
    assert texts and all("<" not in text.replace("<br>", "") for text in texts)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def test_backticks_are_the_only_markup():
    assert str(draw.marked("`a<b` & c")) == "<code>a&lt;b</code> &amp; c"
    assert str(draw.marked("one ` alone <b>")) == "one ` alone &lt;b&gt;"


def test_anchors_are_ids_and_tell_keys_apart():
    keys = ["accuracy-test", "accuracy-Test", "accuracy test", "a<b", "a>b", "ä"]
    anchors = [draw.anchor(key) for key in keys]
    assert len(set(anchors)) == len(keys) and all(re.fullmatch(r"[a-z0-9-]+", found) for found in anchors)
    assert anchors[0] == "accuracy-test"


def test_each_reason_has_one_letter():
    rows = tuple(Row(cells=(Cell(text="x"), dash(f"reason {index % 30}"))) for index in range(60))
    table = Table(title="", columns=(Column(name=""), Column(name="")), rows=rows)
    letters = list(draw.footnotes(table).values())
    assert letters[:3] == ["a", "b", "c"] and letters[25:28] == ["z", "aa", "ab"] and len(letters) == 30


def test_an_undefined_value_breaks_the_line_and_is_no_zero():
    series = Series(label="s", arm="cot", x=(0.0, 1.0, 2.0), y=(1.0, None, 3.0))
    chart = Chart(key="k", title="", form="lines", x_title="step", series=(series,))
    data = draw.figure(chart, ("cot",))["data"][0]
    assert list(data["y"]) == [1.0, None, 3.0] and data["connectgaps"] is False


def test_points_without_an_interval_have_no_bar():
    series = Series(label="s", arm="cot", x=(50.0,), low=(None,), high=(None,), hover=("s",))
    chart = Chart(key="k", title="", form="intervals", x_title="%", series=(series,))
    assert "error_x" not in draw.figure(chart, ("cot",))["data"][0]


@pytest.mark.parametrize(("low", "high", "ticks"), [(0.02, 0.7, [0.02, 0.05, 0.1, 0.2, 0.5]), (1e-6, 10, None)])
def test_ticks_of_a_logarithmic_axis(low: float, high: float, ticks: list[float] | None):
    found = draw._log_ticks(low, high)
    assert found == (ticks or [10.0**power for power in range(-6, 2)])


def test_a_page_that_cannot_be_written_leaves_the_old_one(new_run: NewRun, monkeypatch: pytest.MonkeyPatch):
    folder = new_run().whole()
    path = write_report(folder)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StepwellError) as refused:
        write_report(folder)
    assert f"{path}: the report cannot be written: No space left on device" in str(refused.value)
    assert path.read_bytes() == before and not list(folder.glob(".report*"))


def test_a_run_without_anything_still_has_a_page(tmp_path: Path):
    (tmp_path / "records").mkdir()
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert len(text) < 20_000 and "<script" not in text  # without a chart there is nothing to run
    assert "This plan has no gate" in text and "plan.yaml is missing." in text and "env.json is missing." in text


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of #rrggbb."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("place", [0, 1])
def test_text_and_marks_stand_out_on_light_and_dark(place: int):
    css = (Path(draw.__file__).parent / "report.css").read_text()
    variables = dict(
        re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", css.split("--paper:")[place + 1].join(["--paper:", ""]))
    )
    for name in ("ink", "soft", "go", "no-go", "open", "link"):
        assert contrast(variables[name], variables["paper"]) >= 4.5, name
    for pair in (*draw.PALETTE, draw.GREY):
        assert contrast(pair[place], variables["paper"]) >= 2.7, pair


def test_every_hue_changes_for_dark_screens():
    rules = draw.theme_css()
    assert rules.startswith("@media screen and (prefers-color-scheme: dark)")
    assert rules.count("!important") == 2 * (len(draw.PALETTE) + 1)
    assert 'stroke: rgb(0, 114, 178)"]{stroke:#4fa3dc!important}' in rules


def test_arms_beyond_the_palette_still_have_a_colour(new_run: NewRun):
    arms = tuple(f"arm{index}" for index in range(9))
    assert [draw._colour(arm, arms) for arm in arms][6:] == [light for light, _ in draw.PALETTE[:3]]
    assert draw._colour("", arms) == draw.GREY[0]


def test_view_needs_no_drawing(new_run: NewRun):
    report = view(new_run().whole())
    assert "<" not in "".join(found.title for found in report.sections)
