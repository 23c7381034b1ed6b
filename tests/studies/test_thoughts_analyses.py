"""The stages `thoughts.probe` and `thoughts.trace`, tiny: what they record, and what they refuse."""

from __future__ import annotations

import json
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import records, tiny

from stepwell import kinds
from stepwell.analysis.features import Features, Labels, rows_of
from stepwell.errors import StepwellError
from stepwell.latents.thoughts import Thoughts
from stepwell.plan import Plan, load_plan
from stepwell.runner import RunResult, run
from stepwell.small import SmallConfig, SmallLM
from stepwell.studies.thoughts import probing
from stepwell.studies.thoughts.analysis_params import ProbeParams
from stepwell.studies.thoughts.probing import Position, entities, gather, labels, positions_of
from stepwell.studies.thoughts.sets import chosen_layers, chosen_sets
from stepwell.tasks.prosqa import WordTokenizer, generate_graphs, load_items, render
from stepwell.tasks.prosqa.reading import SymbolReader, TextReader
from stepwell.tasks.prosqa.symbols import SymbolFormat

ARMS = ("cot", "continuous")
PROBE = {"permutations": 9, "smallest_class": 2, "folds": 3, "inner": 2}


def analysed(text: bool) -> Plan:
    """Data, models and trainings as in `tiny`, then these two stages alone."""
    plan = tiny("engine=inline", text=text, arms=ARMS, gates=()).model_dump()
    common = {"needs": ["data", "model", "train"], "each": {"arm": "arm", "seed": "seed"}}
    plan["stages"] = [
        *(stage for stage in plan["stages"] if stage["name"] in ("data", "model", "train")),
        {"name": "probe", "kind": "thoughts.probe", **common, "params": PROBE},
        {"name": "trace", "kind": "thoughts.trace", **common, "params": {"items": 4, "batch_size": 3}},
    ]
    return Plan.model_validate(plan)


@pytest.fixture(scope="module", params=[False, True], ids=["symbols", "text"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(analysed(request.param), tmp_path_factory.mktemp("analyses") / "run")


def test_every_record_has_the_documented_fields(whole: RunResult) -> None:
    for stage in ("probe", "trace"):
        yields, seen = kinds.kind(f"thoughts.{stage}").yields, set()
        for arm in ARMS:
            for record in records(whole.folder, f"{stage}.{arm}.0"):
                seen.add(record["kind"])
                assert yields[record["kind"]] | {"kind", "arm", "seed"} == set(record)
                assert not any(isinstance(value, float) and not math.isfinite(value) for value in record.values())
        assert seen == set(yields)


def test_every_layer_position_and_step_is_one_cell(whole: RunResult) -> None:
    items = load_items(whole.folder / "artifacts" / "data" / "test.json")
    for arm in ARMS:
        cells = records(whole.folder, f"probe.{arm}.0", "probe")
        positions = {cell["position_name"] for cell in cells}
        assert {"question end", "question end, one before"} <= positions
        assert ("thought 1" in positions) is (arm == "continuous")
        longest = max(item.hops for item in items)
        assert len(cells) == 3 * len(positions) * longest
        assert set(Counter((c["layer"], c["position"], c["step"]) for c in cells).values()) == {1}
        for cell in cells:
            assert cell["n"] == sum(item.hops >= cell["step"] for item in items), "n is the items that have the step"


def test_probes_say_what_they_found_or_why_not(whole: RunResult) -> None:
    for arm in ARMS:
        cells = records(whole.folder, f"probe.{arm}.0", "probe")
        tested = sum(cell["p_value"] is not None for cell in cells)
        for cell in cells:
            if cell["undefined"] is not None:
                assert cell["accuracy"] is cell["p_value"] is cell["p_adjusted"] is cell["chance"] is None
                continue
            assert cell["low"] <= cell["accuracy"] <= cell["high"]
            assert cell["selectivity"] == pytest.approx(cell["accuracy"] - cell["control_accuracy"], abs=2e-6)
            assert round(cell["p_value"] * 10) == pytest.approx(cell["p_value"] * 10) and cell["p_value"] >= 0.1
            assert cell["p_adjusted"] == min(1, cell["p_value"] * tested)
            assert cell["p_adjusted_least"] == min(1, tested / 10)


def test_folds_are_recorded_and_keep_apart(whole: RunResult) -> None:
    folds = records(whole.folder, "probe.continuous.0", "fold")
    items = load_items(whole.folder / "artifacts" / "data" / "test.json")
    assert sorted(name for fold in folds for name in fold["scored"]) == sorted(item.id for item in items)
    assert all(not set(fold["used"]) & set(fold["scored"]) for fold in folds) and len(folds) == 3
    checks = {check["name"]: check["passed"] for check in records(whole.folder, "probe.continuous.0", "check")}
    assert checks == {"misaligned-rows": True, "scoring-folds": True}


def test_traces_agree_with_their_items(whole: RunResult) -> None:
    for arm in ARMS:
        items = {item["id"]: item for item in records(whole.folder, f"trace.{arm}.0", "trace-item")}
        (size,) = records(whole.folder, f"trace.{arm}.0", "trace-set")
        assert size["of"] == 16 and size["n"] == len(items) == min(4, 16 - size["left_out"]) > 0
        found = records(whole.folder, f"trace.{arm}.0", "trace")
        for trace in found:
            item = items[trace["id"]]
            assert (trace["clean"], trace["corrupt"]) == (item["clean"], item["corrupt"])
            gap = trace["clean"] - trace["corrupt"]
            if trace["effect"] is None:
                assert gap < 0.05 + 2e-6
            else:
                assert trace["effect"] == pytest.approx((trace["patched"] - trace["corrupt"]) / gap, abs=1e-3)
            if (trace["layer"], trace["position_name"]) == (0, "before the person"):
                assert trace["patched"] == pytest.approx(trace["corrupt"], abs=2e-6)
        assert {trace["layer"] for trace in found} == {0, 1, 2}
        assert ("thought 1" in {trace["position_name"] for trace in found}) is (arm == "continuous")


def test_a_set_that_was_not_made_is_refused(whole: RunResult) -> None:
    data: Any = SimpleNamespace(records=lambda kind: records(whole.folder, "data", kind))
    assert chosen_sets((), data) == ["test"], "all but training and steering"
    assert chosen_sets(("steer",), data) == ["steer"]
    with pytest.raises(StepwellError, match="there is no set `tset`; sets: "):
        chosen_sets(("tset",), data)


# ---- a planted code


NAMES = ("question end", "thought 1", "thought 2", "thought 3")


class Written:
    """Stands in for a stage's context: keeps what is written."""

    seed = 3

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def write(self, kind: str, **fields: Any) -> None:
        self.found.append({"kind": kind, **fields})

    def progress(self, *_: Any, **__: Any) -> None: ...

    def stop_if_asked(self) -> None: ...


def cells_of_planted(**params: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """160 states of noise at four positions; at `thought 2` alone the label of four has a direction of its own."""
    rng = np.random.default_rng(5)
    named = [f"c{label}" for label in rng.permutation(np.arange(160) % 4)]
    states = rng.normal(size=(160, 1, len(NAMES), 8))
    states[:, 0, 2] += 3 * rng.normal(size=(4, 8))[[int(name[1]) for name in named]]
    ids = tuple(f"test-{row:05d}" for row in range(160))
    features = Features(ids=ids, witness=(0,) * 160, states=torch.from_numpy(states).float())
    step = Labels(witness=dict.fromkeys(ids, 0), values=dict(zip(ids, named, strict=True)))
    positions = [
        Position(name=name, role="reasoning" if name.startswith("thought") else "prompt", column=column)
        for column, name in enumerate(NAMES)
    ]
    ctx: Any = Written()
    asked = ProbeParams.model_validate({"folds": 4, "inner": 2, **params})
    probing._write(ctx, list(probing._set(asked, ctx, "test", features, positions, [step], [0])))
    return {(cell["probe"], cell["position_name"]): cell for cell in ctx.found if cell["kind"] == "probe"}


def test_layers_that_the_model_lacks_are_refused_and_none_named_means_all() -> None:
    backbone = SmallLM(SmallConfig(vocabulary=9, width=8, layers=2, heads=2), seed=0)
    assert chosen_layers((), backbone) == [0, 1, 2] and chosen_layers((2, 0), backbone) == [0, 2]
    with pytest.raises(StepwellError, match="there is no layer 3: the model has layers 0 to 2"):
        chosen_layers((1, 3), backbone)


def test_a_code_at_one_thought_stands_out_from_the_others_and_from_the_question() -> None:
    cells = cells_of_planted(permutations=99)
    right = {name: cells["ridge", name]["accuracy"] for name in NAMES}
    chance = cells["ridge", "thought 2"]["chance"]
    assert chance == 0.25 and right["thought 2"] > 0.9
    carrier = cells["ridge", "thought 2"]
    assert carrier["accuracy_elsewhere"] == pytest.approx((right["thought 1"] + right["thought 3"]) / 2, abs=1e-6)
    assert carrier["accuracy_question"] == pytest.approx(right["question end"], abs=1e-6)
    assert abs(carrier["accuracy_elsewhere"] - chance) < 0.1 and abs(carrier["accuracy_question"] - chance) < 0.1
    assert carrier["p_adjusted"] == pytest.approx(4 / 100)
    other = cells["ridge", "thought 1"]
    assert other["accuracy_elsewhere"] == pytest.approx((right["thought 2"] + right["thought 3"]) / 2, abs=1e-6)
    assert other["accuracy_elsewhere"] > other["accuracy"] + 0.2, "what it lacks is elsewhere"
    of_question = cells["ridge", "question end"]
    thoughts = [right[name] for name in NAMES[1:]]
    assert of_question["accuracy_elsewhere"] == pytest.approx(sum(thoughts) / 3, abs=1e-6)


def test_each_kind_of_probe_is_corrected_for_its_own_cells() -> None:
    """The few cells of an MLP, on which few permutations can decide, cost the ridge nothing, nor does it cost them."""
    few = {"mlp_permutations": 3, "mlp_positions": ["thought 1", "thought 2"]}
    cells = cells_of_planted(permutations=99, probes=["ridge", "mlp"], **few)
    assert [key for key in cells if key[0] == "mlp"] == [("mlp", "thought 1"), ("mlp", "thought 2")]
    assert cells["mlp", "thought 2"]["accuracy"] > 0.9
    assert cells["mlp", "thought 2"]["accuracy_elsewhere"] == cells["mlp", "thought 1"]["accuracy"]
    assert cells["mlp", "thought 2"]["accuracy_question"] is None, "no MLP was asked there"
    assert {cell["p_adjusted_least"] for (kind, _), cell in cells.items() if kind == "ridge"} == {4 / 100}
    assert {cell["p_adjusted_least"] for (kind, _), cell in cells.items() if kind == "mlp"} == {2 / 4}
    assert (
        cells["ridge", "thought 2"]["p_adjusted"]
        == cells_of_planted(permutations=99)["ridge", "thought 2"]["p_adjusted"]
    )
    assert [key for key in cells_of_planted(permutations=0, probes=["mlp"], mlp_layers=[1])] == []
    with pytest.raises(ValueError, match="mlp_positions"):
        ProbeParams.model_validate({"mlp_positions": ["thought one"]})


# ---- rows and labels


def symbols() -> tuple[Thoughts, SymbolReader]:
    layout = SymbolFormat(prompt="pairs", persons=2, concepts=8, markers=True)
    config = SmallConfig(vocabulary=layout.vocabulary, width=16, layers=2, heads=2, max_positions=60)
    return Thoughts(SmallLM(config).eval(), "continuous"), SymbolReader(generate_graphs("mini", 20, 1), layout)


ASKED = {"stage": 2, "seed": 7, "batch_size": 8}


def test_states_and_labels_meet_by_id() -> None:
    model, reader = symbols()
    features, positions = gather(model, reader, **ASKED)
    assert features.states.shape == (20, 3, len(positions), 16)
    names = ["question end, one before", "question end", "start marker", "thought 1", "thought 2", "end marker"]
    assert [position.name for position in positions] == names
    for step, given in enumerate(labels(model, reader, **ASKED), start=1):
        rows, _ = rows_of(features, given)
        assert [i for i in range(20) if int(reader.graphs["hops"][i]) >= step] == rows.tolist()


def test_labels_by_other_names_are_refused() -> None:
    """The planted fault: symbols are renamed for every pass, and labels of another pass name other entities."""
    model, reader = symbols()
    features, _ = gather(model, reader, **ASKED)
    other = labels(model, reader, **(ASKED | {"seed": 8}))
    with pytest.raises(StepwellError, match=r"misaligned-rows: .* rows are of another question than their label"):
        rows_of(features, other[0])
    shorter = labels(model, reader, **ASKED, items=12)
    with pytest.raises(StepwellError, match="misaligned-rows: 8 ids are on one side only"):
        rows_of(features, shorter[0])


def test_gathered_thoughts_are_those_that_stand_in_the_columns() -> None:
    """Layer 0 at a thought's column is the thought itself, and its position."""
    model, reader = symbols()
    features, positions = gather(model, reader, stage=2, seed=7, batch_size=20)
    batch = reader.ask(torch.arange(20), "continuous", 2, torch.Generator().manual_seed(7))
    with torch.no_grad():
        _, thoughts = model.columns(batch)
        assert model.backbone.position is not None
        first = [position.name for position in positions].index("thought 1")
        place = model.backbone.position((batch.mask.cumsum(1) - 1)[:, batch.first : batch.first + 2])
    torch.testing.assert_close(features.states[:, 0, first : first + 2], thoughts + place)


def test_entities_are_the_path_under_the_names_of_the_batch() -> None:
    _, reader = symbols()
    batch = reader.ask(torch.arange(20), "cot", 0, torch.Generator().manual_seed(3))
    for row in range(20):
        path = entities(reader, batch, row)
        assert len(path) == int(reader.graphs["hops"][row])
        tokens = [reader.layout.name(int(t)) for t in batch.ids[row][batch.mask[row]]]
        facts = set(zip(tokens[:-4:2], tokens[1:-4:2], strict=True))
        assert all(pair in facts for pair in zip([tokens[-1], *path], path, strict=False)), "every hop is a fact"
    items = render(generate_graphs("mini", 5, 1), "mini", 1)
    text = TextReader(items, WordTokenizer(), (2, 3, 4), thoughts_per_step=1, pad_to_max=True)
    asked = text.ask(torch.tensor([3, 1]), "cot", 0, torch.Generator())
    wanted = [step.removesuffix(".").split()[-1] for step in items[1].steps]
    assert entities(text, asked, 1) == wanted


def test_positions_of_an_arm_without_thoughts() -> None:
    _, reader = symbols()
    batch = reader.ask(torch.arange(4), "removal", 2, torch.Generator().manual_seed(3))
    found = positions_of(batch, 0)
    assert [p.name for p in found] == ["question end, one before", "question end"]
    assert [p.column for p in found] == [batch.ids.shape[1] - 2, batch.ids.shape[1] - 1]


def test_parameters_are_what_a_plan_may_say() -> None:
    assert json.dumps(kinds.kind("thoughts.trace").params().model_dump(mode="json"))
    with pytest.raises(ValueError, match="folds"):
        kinds.kind("thoughts.probe").params.model_validate({"folds": 1})


def test_every_rung_knows_what_its_analyses_cost() -> None:
    for rung in ("demo", "smoke", "laptop", "pilot", "hero"):
        plan = load_plan("thoughts", rung=rung)
        inputs = {s.name: kinds.kind(s.kind).params.model_validate(s.params) for s in plan.stages}
        for name in ("probe", "trace"):
            estimate = kinds.resolve(str(kinds.kind(f"thoughts.{name}").estimate))
            work = {arm: estimate(inputs[name], {"arm": arm}, inputs) for arm in ("direct", "continuous")}
            assert 0 < work["direct"].flop < work["continuous"].flop
            if name == "probe":
                assert 0 < work["direct"].seconds < work["continuous"].seconds < 3600


@pytest.mark.parametrize("rung", ["demo", "laptop", "pilot", "hero"])
def test_every_rung_has_permutations_enough_to_decide(rung: str) -> None:
    """Bonferroni over the grid of a job: with fewer permutations no cell could pass."""
    plan = load_plan("thoughts", rung=rung)
    params = kinds.kind("thoughts.probe").params.model_validate(plan.stage("probe").params).model_dump()
    model = kinds.kind("thoughts.model").params.model_validate(plan.stage("model").params).model_dump()
    text = model["model"]["kind"] == "text"
    positions = 2 + model["curriculum"]["stages"] + (2 if text or model["model"]["markers"] else 0)
    cells = len(params["layers"]) * len(params["steps"]) * positions
    assert params["layers"] and params["steps"] and cells / (params["permutations"] + 1) < 0.05
    if "mlp" in params["probes"]:
        chosen = [params[f"mlp_{axis}"] for axis in ("layers", "steps", "positions")]
        assert set(chosen[0]) <= set(params["layers"]) and set(chosen[1]) <= set(params["steps"])
        assert all(chosen) and math.prod(map(len, chosen)) / (params["mlp_permutations"] + 1) < 0.05


def test_both_probes_are_fitted_where_the_study_decides() -> None:
    assert load_plan("thoughts", rung="hero").stage("probe").params["probes"] == ["ridge", "mlp"]


@pytest.mark.parametrize("rung", ["laptop", "pilot", "hero"])
def test_what_three_seeds_decide_is_about_the_mechanism(rung: str) -> None:
    plan = load_plan("thoughts", rung=rung)
    assert len(plan.axes["seed"]) >= 3
    claims = {gate.name: [found.claim for found in gate.criteria] for gate in plan.gates}
    assert claims["difference"] == ["mechanism"] * 3
    assert claims["over-removal"] == claims["equivalence"] == ["mechanism"]
