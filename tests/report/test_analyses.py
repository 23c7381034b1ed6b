"""The report's analyses: what may be concluded, heat maps, tracing withheld or shown, items to browse, audits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepwell.report import write_report
from stepwell.report.browser import laid_out
from stepwell.report.cells import DASH, Section
from stepwell.report.folder import read_folder
from stepwell.report.tracing import withheld
from stepwell.report.view import view
from stepwell.tasks.prosqa import generate_items, write_items

NewRun = Callable[..., Any]
DIFFERENCE = {
    "metric": "correct",
    "stage": "evaluate",
    "where": {"kind": "item", "set": "test", "condition": "clean", "arm": "continuous"},
    "minus": {"arm": "shared"},
}


def section(run: Any, key: str) -> Section:
    return next(found for found in view(run.path).sections if found.key == key)


# What content, positions and curriculum add.


def evaluated(run: Any, gates: list[dict[str, Any]]) -> Any:
    run.plan(gates=gates)
    for arm in ("cot", "direct", "continuous", "shared", "removal"):
        for seed in run.seeds:
            run.evaluate(arm, seed, sets=("test",))
    return run


def test_what_may_be_concluded_follows_the_gate_and_no_figure(new_run: NewRun):
    gates = [{"name": "over-shared", "asks": "Is it 5 points better?", "criteria": [DIFFERENCE]}]
    run = evaluated(new_run(items=60), gates)
    told = section(run, "factorial").lines[0]
    assert told.startswith("May be concluded of these trained models: nothing. May not: whether recycled content adds ")
    assert (
        "(gate `over-shared` is not reached)" in told and "whether extra positions add anything (no gate asks)" in told
    )
    assert told.endswith("anything about the mechanism, for one seed was trained and that takes 3.")
    found = run.finding("correct", value=0.4, low=0.3, high=0.5, threshold=0.05, n=60)
    run.lines("records/gates.jsonl", [run.verdict("over-shared", "go", [found])])
    told = section(run, "factorial").lines[0]
    assert "recycled content, “Is it 5 points better?” (gate `over-shared`): yes. May not: whether extra" in told
    assert any(
        line.startswith("That a difference between arms is one between mechanisms: one seed of each")
        for line in view(run.path).headline.may_not
    )
    for path in (run.path / "records").glob("evaluate*"):
        flipped = [json.loads(text) for text in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**record, "correct": False}) + "\n" for record in flipped))
    assert section(run, "factorial").lines[0] == told


def test_a_no_go_is_no_equivalence_and_only_its_gate_says_that(new_run: NewRun):
    gates = [{"name": "over-shared", "asks": "Is it better?", "criteria": [DIFFERENCE]}]
    run = evaluated(new_run(items=60), gates)
    found = run.finding("correct", value=0.0, low=-0.02, high=0.02, threshold=0.05, n=60, decision="no-go")
    run.lines("records/gates.jsonl", [run.verdict("over-shared", "no-go", [found])])
    told = section(run, "factorial").lines[0]
    assert "no, which is no proof that there is no difference" in told and "equivalent" not in told
    (run.path / "records" / "gates.jsonl").unlink()
    run.lines("records/gates.jsonl", [run.verdict("over-shared", "go", [found], route="equivalent")])
    assert (
        "equivalent within the margin of gate `over-shared`, set before the run" in section(run, "factorial").lines[0]
    )


def test_one_seed_shows_these_runs_and_a_dash_for_the_mechanism(new_run: NewRun):
    run = evaluated(new_run(items=60), [])
    table = section(run, "factorial").tables[0]
    assert [row.cells[1].text for row in table.rows] == [
        "continuous \u2212 shared",
        "shared \u2212 removal",
        "removal \u2212 direct",
    ]
    for row in table.rows:
        assert row.cells[2].interval and row.cells[3].text == row.cells[4].text == DASH
        assert "needs at least 3" in row.cells[3].why
    three = evaluated(new_run("three", items=60, seeds=(0, 1, 2)), [])
    first = section(three, "factorial").tables[0].rows[0]
    assert first.cells[3].interval and first.cells[5].text == "60 \u00d7 3" and first.cells[4].text != "0"
    chart = section(three, "factorial").charts[0]
    assert {series.filled for series in chart.series} == {True, False} and (chart.low, chart.high) == (-100, 100)


def test_the_report_says_why_multipass_is_no_arm(new_run: NewRun):
    for run in (new_run("bare"), evaluated(new_run("whole", items=30), [])):
        run.plan()
        (text,) = (line for line in section(run, "factorial").lines if "multipass" in line)
        assert "the same function: the same logits and the same gradients" in text


# Probes.


def probed(run: Any, **fields: Any) -> Any:
    run.plan()
    cell = {"kind": "probe", "arm": "continuous", "seed": 0, "set": "test", "probe": "ridge", "step": 1, "n": 80}
    cell |= {"classes": 8, "chance": 0.125, "low": 0.8, "high": 0.9, "control_accuracy": 0.14, "selectivity": 0.71}
    names = ("question end", "thought 1", "thought 2")
    records = [
        {**cell, "layer": layer, "position": place, "position_name": name, "accuracy": 0.85 if place == layer else 0.2}
        | {
            "p_value": 0.001,
            "p_adjusted": 0.009 if place == layer else 1.0,
            "p_adjusted_least": 0.009,
            "undefined": None,
        }
        | fields
        for layer in (0, 1)
        for place, name in enumerate(names)
    ]
    blank = {"accuracy": None, "low": None, "high": None, "p_value": None, "p_adjusted": None, "selectivity": None}
    records[2] |= {**blank, "undefined": "an entity has 3 items, 5 needed"}
    run.job("probe.continuous.0", records)
    return run


def test_a_probe_map_shows_numbers_only_where_the_test_supports_them(new_run: NewRun):
    found = section(probed(new_run()), "probes")
    (chart,) = found.charts
    assert chart.heat is not None
    assert chart.heat.x == ("question end", "thought 1", "thought 2") and chart.heat.y == ("0", "1")
    assert chart.heat.text == (("85", "·", ""), ("·", "85", "·"))
    assert chart.heat.values[0][2] is None and chart.heat.low == 0.125
    assert "undefined, an entity has 3 items, 5 needed" in chart.heat.hover[0][2]
    assert "control 14.0 %, selectivity 71.0 points, adjusted p 0.009" in chart.heat.hover[0][0]
    assert chart.table is not None and chart.table.rows[-1].cells[3].text == DASH
    assert [cell.text for cell in found.tables[0].rows[0].cells] == ["an entity has 3 items, 5 needed", "1"]


def test_other_thoughts_and_the_question_stand_beside_the_accuracy(new_run: NewRun):
    beside = {"role": "reasoning", "accuracy_elsewhere": 0.2, "accuracy_question": 0.19}
    found = section(probed(new_run(), **beside), "probes")
    (chart,) = found.charts
    assert chart.heat is not None and chart.table is not None
    assert "selectivity 71.0 points, elsewhere 20.0 %, question 19.0 %, adjusted p 0.009" in chart.heat.hover[1][1]
    question, first = chart.table.rows[0].cells[1:3]  # layer 1
    assert (first.text, first.count) == ("85.0", "elsewhere 20.0, question 19.0")
    assert question.count == "elsewhere 20.0", "the question's end is not compared with itself"
    assert "“elsewhere”, the mean over the other thoughts" in found.lines[1]
    assert found.lines[1].endswith("Of 2 cells at thoughts with a number, 2 lie above both (no test).")
    low = section(probed(new_run("low"), **beside | {"accuracy_question": 0.9}), "probes")
    assert low.lines[1].endswith("Of 2 cells at thoughts with a number, 0 lie above both (no test).")
    alone = section(probed(new_run("alone"), **beside | {"accuracy_elsewhere": None}), "probes")
    assert alone.lines[1].endswith("holds by itself.") and "elsewhere 20" not in str(alone.charts)


def test_too_few_permutations_are_said(new_run: NewRun):
    lines = section(probed(new_run(), p_adjusted_least=0.3), "probes").lines
    assert lines[1] == "With so few permutations no cell can get below p = 0.3: a dot says nothing."
    run = probed(new_run("both"))
    (path,) = (run.path / "records").glob("probe*")
    ridge = [json.loads(text) for text in path.read_text().splitlines()]
    mlp = [{**record, "probe": "mlp", "p_adjusted_least": 0.5} for record in ridge]
    path.write_text("".join(json.dumps(record) + "\n" for record in (*ridge, *mlp)))
    lines = section(run, "probes").lines
    assert lines[1] == "With so few permutations no cell of the mlp can get below p = 0.5: a dot says nothing."


# Tracing.


SANITY = {"name": "causal-sanity", "asks": "Does tracing work?", "criteria": [{"metric": "effect", "stage": "trace"}]}
TRACE = {"name": "trace", "kind": "thoughts.trace"}


def traced(run: Any, gates: list[dict[str, Any]]) -> Any:
    run.plan(gates=gates, stages=[TRACE])
    cell = {"kind": "trace", "arm": "cot", "seed": 0, "set": "test", "role": "reasoning", "clean": 0.9, "corrupt": 0.1}
    run.job(
        "trace.cot.0",
        [
            {
                **cell,
                "id": f"i{row}",
                "layer": layer,
                "position": place,
                "position_name": f"step {place}",
                "patched": 0.5,
            }
            | {"effect": None if place == 2 else 0.5 * layer + 0.01 * (row % 3)}
            for row in range(12)
            for layer in (0, 1)
            for place in (1, 2)
        ],
    )
    return run


@pytest.mark.parametrize(
    ("decision", "fields", "why"),
    [
        ("no-go", {}, "the sanity gate `causal-sanity` is no-go: the interval lies"),
        ("inconclusive", {}, "the sanity gate `causal-sanity` is inconclusive"),
        ("go", {"mode": "point"}, "the sanity gate `causal-sanity` is go"),
        (
            "go",
            {"override": {"reason": "too strict", "changes": ["gates.causal-sanity: 1 -> 2"]}},
            "was changed after the run began",
        ),
    ],
)
def test_tracing_is_withheld_unless_the_gate_goes(new_run: NewRun, decision: str, fields: dict[str, Any], why: str):
    run = traced(new_run(), [SANITY])
    point = {"method": "point", "mode": "point"} if "mode" in fields else {}
    found = run.finding("effect", "trace", "arm=cot", value=0.4, low=0.35, high=0.45, n=12, decision=decision, **point)
    run.lines("records/gates.jsonl", [run.verdict("causal-sanity", decision, [found], **fields)])
    shown = section(run, "tracing")
    assert not shown.charts and not shown.tables
    assert shown.missing.startswith("Withheld: ") and why in shown.missing


def test_tracing_without_a_gate_or_before_its_verdict_is_withheld(new_run: NewRun):
    assert withheld(read_folder(traced(new_run("none"), []).path)).startswith("this plan has no gate")
    assert "is not reached" in withheld(read_folder(traced(new_run("early"), [SANITY]).path))


def test_tracing_is_shown_when_the_gate_goes(new_run: NewRun):
    run = traced(new_run(), [SANITY])
    found = run.finding("effect", "trace", "arm=cot", value=0.4, low=0.35, high=0.45, n=12)
    run.lines("records/gates.jsonl", [run.verdict("causal-sanity", "go", [found])])
    shown = section(run, "tracing")
    assert shown.missing == ""
    heat = shown.charts[0].heat
    assert heat is not None and heat.x == ("step 1", "step 2")
    assert heat.values[0][0] == pytest.approx(0.01) and heat.values[1][0] == pytest.approx(0.51)
    assert heat.values[0][1] is None and "corruption did no harm in any of 12" in heat.hover[0][1]
    assert heat.hover[1][0].startswith("layer 1, step 1: 0.51 (0.5") and heat.hover[1][0].endswith("n 12 of 12")


def test_items_traced_under_several_seeds_are_counted_once(new_run: NewRun):
    run = traced(new_run(), [SANITY])
    path = run.path / "records" / "trace.cot.0.jsonl"
    run.job("trace.cot.1", [{**json.loads(text), "seed": 1} for text in path.read_text().splitlines()])
    found = run.finding("effect", "trace", "arm=cot", value=0.4, low=0.35, high=0.45, n=12)
    run.lines("records/gates.jsonl", [run.verdict("causal-sanity", "go", [found])])
    heat = section(run, "tracing").charts[0].heat
    assert heat is not None and heat.hover[1][0].endswith("n 12 of 12")
    assert heat.hover[0][1].endswith("corruption did no harm in any of 12")


def test_an_arm_that_corruption_did_not_harm_has_no_map_but_a_line(new_run: NewRun):
    run = traced(new_run(), [SANITY])
    row = {"kind": "trace", "arm": "direct", "seed": 0, "set": "test", "role": "prompt", "clean": 0.5, "corrupt": 0.5}
    place = {"id": "i0", "layer": 0, "position": 1, "position_name": "the person", "patched": 0.5, "effect": None}
    run.job("trace.direct.0", [{**row, **place}])
    found = run.finding("effect", "trace", "arm=cot", value=0.4, low=0.35, high=0.45, n=12)
    run.lines("records/gates.jsonl", [run.verdict("causal-sanity", "go", [found])])
    shown = section(run, "tracing")
    assert [chart.key for chart in shown.charts] == ["tracing-cot"]
    assert shown.lines[-1].startswith("No map for `direct`: corruption did no harm")


# Items.


def browsed(run: Any, count: int, *, thoughts: int = 0, evil: str = "") -> Any:
    run.plan()
    folder = run.path / "artifacts" / "data"
    folder.mkdir(parents=True)
    items = generate_items("id", count, 3)
    write_items(folder / "test.json", items)
    for arm in ("cot", "direct", "continuous", "shared", "removal"):
        item = {"kind": "item", "arm": arm, "seed": 0, "set": "test", "condition": "clean", "hops": 4}
        records: list[dict[str, Any]] = [
            {**item, "id": f"test-{n:05d}", "correct": n % 2 == 0, "prediction": f"{evil}node 3", "answer": "node 5"}
            for n in range(count)
        ]
        records += [
            {"kind": "thought", "arm": arm, "seed": 0, "set": "test", "id": f"test-{n:05d}", "position": k + 1}
            | {"nearest": [[f"{evil}node {k}", 0.61], ["wumpus", 0.4], ["every", 0.2], ["a", 0.1], ["b", 0.1]]}
            for n in range(thoughts if arm in ("continuous", "shared") else 0)
            for k in range(6)
        ]
        run.job(f"evaluate.{arm}.0", records)
    return run, items


def test_items_show_names_for_nodes_answers_and_nearest_tokens(new_run: NewRun):
    run, items = browsed(new_run(), 12, thoughts=5)
    found = section(run, "browser")
    assert len(found.items) == 5  # those whose thoughts were recorded
    first, item = found.items[0], items[0]
    assert (first.id, first.question, first.answer) == ("test-00000", item.question, item.answer)
    assert first.about.startswith("4 hops cot ✓ direct ✓") and found.items[1].about.startswith("4 hops cot ✗")
    assert dict(first.answers)["cot"] == f"✓ {item.idx_to_symbol[3]}"
    assert dict(first.thoughts)["continuous 1"] == f"{item.idx_to_symbol[0]} 0.61, wumpus 0.40, every 0.20"
    assert first.graph is not None and {n.name for n in first.graph.nodes} == set(item.idx_to_symbol)


def test_without_thoughts_or_questions_the_answers_are_still_shown(new_run: NewRun):
    run, _ = browsed(new_run(), 120)
    assert len(section(run, "browser").items) == 100
    (run.path / "artifacts" / "data" / "test.json").unlink()
    found = section(run, "browser")
    assert found.lines[1] == "The questions were not kept in this folder."
    assert (found.items[0].question, found.items[0].graph, found.items[0].answer) == ("", None, "node 5")


def test_a_graph_is_laid_out_downwards_without_two_nodes_in_one_place():
    for item in generate_items("id", 40, 9):
        graph = laid_out(item)
        at = [(node.x, node.y) for node in graph.nodes]
        assert len(set(at)) == len(at) == len(item.idx_to_symbol)
        assert all(at[parent][1] < at[child][1] for parent, child in graph.edges)
        assert all(0 <= x <= graph.width and 0 <= y <= graph.height for x, y in at)
        assert len(graph.path) == item.hops and graph.path[0][0] == item.root and graph.path[-1][1] == item.target
        assert set(graph.path) <= set(graph.edges)


EVIL = "<script>window.owned = 1</script><img src=x onerror=alert(1)>"


def test_five_hundred_items_stay_below_five_megabytes_and_evil_text_is_inert(new_run: NewRun):
    run, _ = browsed(new_run(), 500, thoughts=500, evil=EVIL[:20])
    path: Path = write_report(run.path)
    text = path.read_text()
    assert path.stat().st_size < 5_000_000
    assert text.count("<svg viewBox") == 500 and text.count('<details class="item">') == 500
    assert "<script>window" not in text and "<img" not in text
    assert not re.search(r'(src|href)="https?://', text)


# Audits.


def test_audits_are_told_clean_or_by_name(new_run: NewRun):
    run = new_run()
    run.whole()
    found = section(run, "analyses-audit")
    assert found.lines[0].startswith("None of 10 audits") and found.tables[0].folded
    lines = [json.loads(text) for text in (run.path / "records" / "evaluate.shared.0.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**line, "latents": line["hops"]}) + "\n" for line in lines)
    (run.path / "records" / "evaluate.shared.0.jsonl").write_text(text)
    found = section(run, "analyses-audit")
    assert found.lines[0].startswith("1 of 10 audits found a fault")
    (bad,) = (row for row in found.tables[0].rows if row.cells[1].tone == "alert")
    assert bad.cells[0].text == "gold-hops"


def test_a_constant_of_the_headline_is_that_of_the_statistics():
    from stepwell.audit.run import SEEDS_FOR_A_MECHANISM
    from stepwell.report.answer import FEWEST_SEEDS
    from stepwell.stats import FEWEST_SEEDS as NEEDED

    assert FEWEST_SEEDS == SEEDS_FOR_A_MECHANISM == NEEDED
