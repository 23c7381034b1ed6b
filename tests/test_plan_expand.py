"""Gates over axes: one gate written, one decided for each point; ladders; and which jobs they lead where."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepwell.errors import StepwellError
from stepwell.plan import Plan, dump_plan, jobs, load_plan
from stepwell.plan.expand import expanded
from stepwell.runner import Schedule, run
from toy import events_of, started

GATE: dict[str, Any] = {
    "name": "enough",
    "asks": "Is it enough?",
    "each": {"tier": "tier", "model": "model"},
    "after": ["fit"],
    "before": ["look"],
    "criteria": [
        {"metric": "correct", "stage": "fit", "where": {"kind": "item"}, "comparison": ">=", "threshold": 0.5}
    ],
}
AXES = {"tier": ["easy", "middle", "hard"], "model": ["small", "Large.v2"], "slots": [4, 8]}
POINT = {"tier": "tier", "model": "model"}
STAGES: list[dict[str, Any]] = [
    {"name": "data", "kind": "toy.walk", "each": {"tier": "tier"}},
    {"name": "load", "kind": "toy.walk", "each": {"model": "model"}},
    {"name": "fit", "kind": "toy.sum", "each": POINT, "needs": ["data", "load"]},
    {"name": "look", "kind": "toy.sum", "each": POINT, "needs": ["fit"]},
    {"name": "sweep", "kind": "toy.sum", "each": {**POINT, "slots": "slots"}, "needs": ["data", "load"]},
]
DETOUR = {"name": "detour", "kind": "toy.sum", "each": POINT, "needs": ["data"], "on": "around"}


def plan_of(*gates: dict[str, Any], stages: list[dict[str, Any]] | None = None, **changes: Any) -> Plan:
    fields = {
        "study": "points", "title": "Points", "question": "Which?", "extensions": ["stepwell_toy"], "axes": AXES,
        "stages": stages or STAGES, "gates": list(gates or (GATE,)), **changes,
    }  # fmt: skip
    return Plan.model_validate(copy.deepcopy(fields))


def gate(**changes: Any) -> dict[str, Any]:
    return {**GATE, **changes}


# ---- names, criteria, selectors


def test_a_plan_without_each_is_unchanged() -> None:
    plain = {key: value for key, value in GATE.items() if key != "each"}
    plan = plan_of(plain)
    assert expanded(plan) == plan
    assert [each.at for each in expanded(plan).gates] == [{}]


def test_shipped_plans_without_each_are_unchanged() -> None:
    plan = load_plan("thoughts", rung="demo")
    assert expanded(plan) == plan and all(not each.at and not each.each for each in plan.gates)


def test_a_name_tells_the_axes_that_have_several_values() -> None:
    both = [each.name for each in expanded(plan_of()).gates]
    assert both == [f"enough-{t}-{m}" for t in ("easy", "middle", "hard") for m in ("small", "large-v2")]
    one = expanded(plan_of(axes={**AXES, "model": ["small"]})).gates
    assert [each.name for each in one] == ["enough-easy", "enough-middle", "enough-hard"]
    assert one[0].at == {"tier": "easy", "model": "small"}
    none = expanded(plan_of(axes={**AXES, "model": ["small"], "tier": ["easy"]})).gates
    assert [(each.name, each.at) for each in none] == [("enough", {"tier": "easy", "model": "small"})]


def test_values_may_be_written_in_the_gate() -> None:
    found = expanded(plan_of(gate(each={"tier": ["hard"], "model": ["small", "Large.v2"]}))).gates
    assert [(each.name, each.at["tier"]) for each in found] == [("enough-small", "hard"), ("enough-large-v2", "hard")]


def test_a_point_is_about_its_own_jobs_and_records() -> None:
    for made in expanded(plan_of(gate(after=["fit", "data"]))).gates:
        tier, model = made.at["tier"], made.at["model"]
        (criterion,) = made.criteria
        assert criterion.where == {"tier": tier, "model": model, "kind": "item"}
        fit, data = made.after
        assert (fit.stage, fit.where) == ("fit", {"tier": (tier,), "model": (model,)})
        assert (data.stage, data.where) == ("data", {"tier": (tier,)}), "data know no model"
        (look,) = made.before
        assert (look.stage, look.where) == ("look", {"tier": (tier,), "model": (model,)})
        assert (made.each, made.ladder) == ({}, None)


def test_what_the_gate_says_itself_about_an_axis_stays() -> None:
    """Every model is judged by how the small one does."""
    criteria = [{**GATE["criteria"][0], "where": {"kind": "item", "model": "small"}}]
    given = gate(after=[{"stage": "fit", "where": {"model": ["small"]}}], criteria=criteria)
    for made in expanded(plan_of(given)).gates:
        assert made.criteria[0].where == {"tier": made.at["tier"], "model": "small", "kind": "item"}
        assert made.after[0].where == {"tier": (made.at["tier"],), "model": ("small",)}


def test_without_before_it_holds_what_needs_what_it_judges() -> None:
    for made in expanded(plan_of(gate(before=[]))).gates:
        assert [(one.stage, one.where) for one in made.before] == [
            ("look", {"tier": (made.at["tier"],), "model": (made.at["model"],)})
        ]


def test_expanding_twice_is_expanding_once_and_a_run_folder_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(dump_plan(plan_of(gate(ladder="tier"))))
    once = load_plan(path)
    assert len(once.gates) == 6 and expanded(once) == once
    path.write_text(dump_plan(once))
    assert load_plan(path) == once
    assert jobs(once) == jobs(plan_of(gate(ladder="tier")))


# ---- who waits for whom


def decide(schedule: Schedule, **routes: str) -> None:
    """Let every gate that can be decided take its route; `next` where none is given."""
    while gates := schedule.to_decide():
        for each in gates:
            schedule.routes[each.name] = routes.get(each.name.replace("-", "_"), "next")


def walk(plan: Plan, **routes: str) -> tuple[Schedule, list[str]]:
    """The schedule at the end of a run in which no job fails, and the jobs in the order in which they ran."""
    plan = expanded(plan)
    schedule, ran = Schedule(plan, jobs(plan)), []
    while True:
        decide(schedule, **routes)
        schedule.settle()
        ready = schedule.ready()
        if not ready:
            return schedule, ran
        schedule.state[ready[0].id] = "done"
        ran.append(ready[0].id)


def ran_of(plan: Plan, **routes: str) -> set[str]:
    return set(walk(plan, **routes)[1])


def test_a_gate_at_one_point_holds_and_stops_the_jobs_at_that_point_alone() -> None:
    everything = {job.id for job in jobs(plan_of())}
    assert ran_of(plan_of()) == everything
    assert everything - ran_of(plan_of(), enough_middle_small="stop") == {"look.middle.small"}
    schedule, _ = walk(plan_of(), enough_middle_small="stop")
    assert schedule.state["look.middle.small"] == "skipped"
    assert schedule.reason["look.middle.small"] == "gate enough-middle-small routed to `stop`"


def test_a_ladder_holds_later_tiers_until_the_earlier_gate_went_on() -> None:
    plan = expanded(plan_of(gate(ladder="tier"), axes={**AXES, "model": ["small"]}))
    schedule = Schedule(plan, jobs(plan))

    def ready() -> set[str]:
        decide(schedule)
        schedule.settle()
        return {job.id for job in schedule.ready()}

    def do(*names: str) -> None:
        for name in names:
            assert name in ready(), name
            schedule.state[name] = "done"

    assert ready() == {"data.easy", "load.small"}
    do("data.easy", "load.small", "sweep.easy.small.4")
    assert ready() == {"fit.easy.small", "sweep.easy.small.8"}, "no later tier begins before the gate has decided"
    do("fit.easy.small")
    assert ready() == {"look.easy.small", "sweep.easy.small.8", "data.middle"}
    do("data.middle")
    assert ready() & {"data.hard", "fit.middle.small"} == {"fit.middle.small"}
    do("fit.middle.small")
    assert "data.hard" in ready()


@pytest.mark.parametrize("route", ["stop", "around"])
def test_a_ladder_goes_no_further_than_the_gate_that_did_not_go_on(route: str) -> None:
    plan = plan_of(
        gate(ladder="tier", routes={"inconclusive": "around"}), stages=[*STAGES, DETOUR],
        axes={**AXES, "model": ["small"]},
    )  # fmt: skip
    schedule, ran = walk(plan, enough_middle=route)
    assert {name.split(".")[1] for name in ran if not name.startswith("load")} == {"easy", "middle"}
    assert ("detour.middle.small" in ran) == (route == "around") and "detour.hard.small" not in ran
    assert schedule.state["data.hard"] == "skipped"
    assert schedule.reason["data.hard"] == f"gate enough-middle routed to `{route}`"
    # The gate at the last tier has nothing to judge.
    assert schedule.unreached["enough-hard"][0] == "skipped"
    assert not {"waiting", "running"} & set(schedule.state.values())


def test_on_a_ladder_one_model_that_fails_does_not_bar_another() -> None:
    """The data of a tier are both models': neither gate holds them."""
    _, ran = walk(plan_of(gate(ladder="tier")), enough_easy_small="stop")
    fits = {name for name in ran if name.startswith("fit")}
    assert fits == {"fit.easy.small", "fit.easy.Large.v2", "fit.middle.Large.v2", "fit.hard.Large.v2"}
    assert {"data.middle", "data.hard"} <= set(ran)
    order = {name: place for place, name in enumerate(ran)}
    assert order["fit.easy.Large.v2"] < order["fit.middle.Large.v2"] < order["fit.hard.Large.v2"]


def test_a_ladder_is_climbed_in_the_order_in_which_values_are_written() -> None:
    plan = plan_of(gate(ladder="tier"), axes={**AXES, "model": ["small"], "tier": ["hard", "easy"]})
    _, ran = walk(plan, enough_hard="stop")
    assert {name.split(".")[1] for name in ran if not name.startswith("load")} == {"hard"}


def test_a_route_opened_at_one_point_opens_no_job_at_another() -> None:
    plan = plan_of(gate(routes={"inconclusive": "around"}), stages=[*STAGES, DETOUR])
    schedule, ran = walk(plan, enough_middle_small="around")
    assert {name for name in ran if name.startswith("detour")} == {"detour.middle.small"}
    assert schedule.reason["detour.easy.small"] == "no gate routed to `around`"
    assert {name for name in schedule.state if schedule.state[name] == "skipped" and "detour" not in name} == {
        "look.middle.small"
    }


def test_a_stage_that_lacks_an_axis_opens_with_any_point_and_closes_with_all() -> None:
    shared = {**DETOUR, "each": {"tier": "tier"}}
    plan = plan_of(gate(routes={"inconclusive": "around"}), stages=[*STAGES, shared])
    assert {n for n in ran_of(plan, enough_middle_small="around") if n.startswith("detour")} == {"detour.middle"}
    assert not {n for n in ran_of(plan) if n.startswith("detour")}


def test_a_gate_that_is_asked_on_a_route_is_asked_at_that_point_alone() -> None:
    second = gate(name="again", on="around", after=["detour"], before=[],
                  criteria=[{**GATE["criteria"][0], "stage": "detour"}])  # fmt: skip
    plan = plan_of(gate(routes={"inconclusive": "around"}), second, stages=[*STAGES, DETOUR])
    schedule, _ = walk(plan, enough_middle_small="around")
    assert schedule.routes["again-middle-small"] == "next" and schedule.state["detour.middle.small"] == "done"
    others = [each.name for each in expanded(plan).gates if each.name.startswith("again")]
    assert len(others) == 6 and all(schedule.routes.get(name) == "next" for name in others)
    assert not {"waiting", "running"} & set(schedule.state.values())


def test_whatever_happens_every_job_comes_to_rest_and_no_tier_begins_too_early() -> None:
    rng = random.Random(4)
    given = gate(ladder="tier", routes={"inconclusive": "around"})
    plan = expanded(plan_of(given, stages=[*STAGES, DETOUR]))
    tiers = [str(value) for value in AXES["tier"]]
    for _ in range(150):
        schedule = Schedule(plan, jobs(plan))
        while True:
            for each in schedule.to_decide():
                schedule.routes[each.name] = rng.choice(["next", "next", "stop", "around"])
            schedule.settle()
            ready = schedule.ready()
            if not ready:
                break
            job = rng.choice(ready)
            if job.stage in ("fit", "look", "sweep", "detour"):
                model = str(job.axes["model"]).lower().replace(".", "-")
                for tier in tiers[: tiers.index(str(job.axes["tier"]))]:
                    assert schedule.routes[f"enough-{tier}-{model}"] == "next"
            schedule.state[job.id] = rng.choice(["done"] * 5 + ["failed"])
        assert not {"waiting", "running"} & set(schedule.state.values())


# ---- a run


def test_a_run_decides_one_gate_a_point(tmp_path: Path) -> None:
    """`sum` at seed 0 and 1, each with its own gate; the policy and the verdicts name the points."""
    stages = [
        {"name": "walk", "kind": "toy.walk", "each": {"seed": "seed"}},
        {"name": "sum", "kind": "toy.sum", "each": {"seed": "seed"}, "needs": ["walk"]},
        {"name": "more", "kind": "toy.sum", "each": {"seed": "seed"}, "needs": ["walk"]},
    ]
    criteria = [{**GATE["criteria"][0], "stage": "sum", "threshold": 0.0, "mode": "point"}]
    given = gate(each={"seed": "seed"}, ladder="seed", after=["sum"], before=["more"], criteria=criteria)
    plan = plan_of(given, stages=stages, axes={"seed": [0, 1]}, workers=2)
    result = run(plan, tmp_path / "run")
    assert [(verdict.gate, verdict.decision) for verdict in result.verdicts] == [("enough-0", "go"), ("enough-1", "go")]
    assert all(f"seed={seed}" in v.reason for seed, v in enumerate(result.verdicts))
    order = started(tmp_path / "run")
    assert order.index("sum.0") < order.index("walk.1") and len(order) == 6
    assert run(plan, tmp_path / "run") == result and started(tmp_path / "run") == order
    # The other way round: what is below the bar at the first rung ends the climb.
    criteria = [{**criteria[0], "threshold": 2.0}]
    stopped = run(plan_of({**given, "criteria": criteria}, stages=stages, axes={"seed": [0, 1]}), tmp_path / "stopped")
    assert [(verdict.gate, verdict.decision) for verdict in stopped.verdicts] == [("enough-0", "no-go")]
    assert started(tmp_path / "stopped") == ["walk.0", "sum.0"]
    skipped = {event["job"]: event["reason"] for event in events_of(tmp_path / "stopped", "job-skipped")}
    assert skipped["walk.1"] == skipped["more.0"] == "gate enough-0 routed to `stop`"


# ---- what cannot be


def refused(path: Path, text: str, **changes: Any) -> str:
    """The error of a plan with such a gate; and the line on which `text` stands."""
    lines = {**yaml.safe_load(dump_plan(plan_of())), "gates": [gate(**changes)]}
    path.write_text(yaml.safe_dump(lines, sort_keys=False))
    rows = path.read_text().splitlines()
    begin = rows.index("gates:")
    line = next(number for number, row in enumerate(rows, 1) if number > begin and text in row)
    with pytest.raises(StepwellError) as caught:
        load_plan(path)
    assert caught.value.exit_code == 3
    assert f"{path}:{line}: " in str(caught.value), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "at", "message"),
    [
        ({"each": {"tier": "tiers"}}, "tier: tiers", "gates.enough.each.tier: unknown axis `tiers`; axes: "),
        ({"each": {"tier": "tiers"}}, "tier: tiers", "(a value is written as a list: [tiers])"),
        ({"each": {"tiers": "tier"}}, "tiers: tier", "of the stages of `after`: unknown axis `tiers`; axes: "),
        ({"each": {"slots": [4]}}, "slots:", "of the stages of `after`: unknown axis `slots`; axes: model, tier"),
        ({"each": {"tier": []}}, "tier: []", "gates.enough.each.tier: an axis without values makes no gate"),
        ({"ladder": "slots"}, "name: enough", "`ladder` names an axis of `each`, found `slots`"),
        ({"each": {}, "ladder": "tier"}, "name: enough", "`ladder` names an axis of `each`, found `tier`"),
    ],
)
def test_axes_that_are_none_are_refused_with_their_line(
    tmp_path: Path, changes: dict[str, Any], at: str, message: str
) -> None:
    assert message in refused(tmp_path / "plan.yaml", at, **changes)


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ([gate(each={"tier": ["easy", "nowhere"]})], "selects no job: tier of stage fit is "),
        ([gate(each={"model": ["Large.v2", "large-v2"]})], "`enough-large-v2` is the name of 2 gates"),
        ([gate(each={"tier": "tier"}), gate(name="enough-easy", each={})], "`enough-easy` is the name of 2 gates"),
        ([gate(each={"tier": "tier"}, ladder="tier", after=["look"], before=["fit"])], "cycle through a gate: "),
    ],
)
def test_points_that_cannot_be_are_refused(tmp_path: Path, gates: list[dict[str, Any]], message: str) -> None:
    axes = {**AXES, "model": ["small", "Large.v2", "large-v2"]}
    with pytest.raises(StepwellError, match="points") as caught:
        jobs(expanded(plan_of(*gates, axes=axes)))
    assert message in str(caught.value)
    path = tmp_path / "plan.yaml"
    path.write_text(dump_plan(plan_of(*gates, axes=axes)))
    with pytest.raises(StepwellError) as caught:
        load_plan(path)
    assert message in str(caught.value) and caught.value.exit_code == 3


def test_an_unsound_plan_in_python_is_refused_before_it_is_expanded(tmp_path: Path) -> None:
    with pytest.raises(StepwellError, match="unknown axis `tiers`"):
        run(plan_of(gate(each={"tier": "tiers"})), tmp_path / "run")
    with pytest.raises(StepwellError, match="unknown stage `fits`"):
        run(plan_of(gate(criteria=[{**GATE["criteria"][0], "stage": "fits"}])), tmp_path / "run")
    assert not (tmp_path / "run").exists()
