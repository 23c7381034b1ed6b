from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

import toy_kinds
from stepwell import kinds
from stepwell.errors import StepwellError
from stepwell.plan import (
    Band,
    Criterion,
    GateSpec,
    Plan,
    Selector,
    StageSpec,
    dump_plan,
    held_by,
    jobs,
    load_plan,
    rungs_of,
    select,
)
from stepwell.plan.source import dump, read_text
from stepwell.spec import DataFile, Spec, data_files


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(toy_kinds.PLAN)
    return path


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(toy_kinds.PLAN.splitlines(), 1) if text in line)


def error_of(path: Path, *overrides: str, rung: str | None = "demo") -> str:
    with pytest.raises(StepwellError) as caught:
        load_plan(path, rung=rung, overrides=overrides)
    assert caught.value.exit_code == 3
    return str(caught.value)


def edited(toy: Path, old: str, new: str) -> Path:
    assert toy_kinds.PLAN.count(old) == 1
    toy.write_text(toy_kinds.PLAN.replace(old, new))
    return toy


# ---- loading


def test_a_rung_is_overrides_on_the_base(toy: Path) -> None:
    demo, hero = load_plan(toy, rung="demo"), load_plan(toy, rung="hero")
    assert rungs_of(toy) == ("demo", "hero")
    assert (demo.rung, hero.rung) == ("demo", "hero")
    assert demo.stage("train").params["lr"] == 1e-3
    assert hero.stage("train").params["lr"] == 3e-4
    assert (demo.axes["seed"], hero.axes["seed"]) == ((0, 1), (0, 1, 2))


def test_parameters_are_filled_in_with_defaults(toy: Path) -> None:
    assert load_plan(toy, rung="demo").stage("train").params == {
        "lr": 1e-3,
        "steps": 3,
        "shape": {"width": 8},
        "sizes": [1],
        "mode": "fast",
        "amsgrad": False,
        "accuracy": 0.9,
        "engine": {"kind": "horse", "legs": 4},
    }


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.lr=3e-4", lambda plan: plan.stage("train").params["lr"] == 3e-4),
        ("train.lr=1", lambda plan: plan.stage("train").params["lr"] == 1.0),
        ("train.steps=1e4", lambda plan: plan.stage("train").params["steps"] == 10_000),
        ("train.shape.width=16", lambda plan: plan.stage("train").params["shape"] == {"width": 16}),
        ("evaluate.shape.width=16", lambda plan: plan.stage("evaluate").params["shape"] == {"width": 16}),
        ("train.sizes=[1, 2]", lambda plan: plan.stage("train").params["sizes"] == [1, 2]),
        ("train.each.arm=[cot]", lambda plan: plan.stage("train").each["arm"] == ("cot",)),
        ("axes.seed=7", lambda plan: plan.axes["seed"] == (7,)),
        ("axes.seed=[7, 8]", lambda plan: plan.axes["seed"] == (7, 8)),
        ("workers=3", lambda plan: plan.workers == 3),
        ("hourly_price=2.5", lambda plan: plan.hourly_price == 2.5),
        ("gates.early.threshold=.6", lambda plan: plan.gates[0].criteria[0].threshold == 0.6),
        ("gates.early.criteria.0.threshold=.6", lambda plan: plan.gates[0].criteria[0].threshold == 0.6),
        ("gates.early.at_most.epoch=3", lambda plan: plan.gates[0].criteria[0].at_most == {"epoch": 3.0}),
        ("gates.early.combine=any", lambda plan: plan.gates[0].combine == "any"),
        ("gates.early.routes.no-go=next", lambda plan: plan.gates[0].routes["no-go"] == "next"),
        ("gates.early=null", lambda plan: plan.gates == () and len(plan.stages) == 4),
        ("gates=[]", lambda plan: plan.gates == ()),
    ],
)
def test_dotted_overrides_set_what_they_name(toy: Path, override: str, read) -> None:
    if "each" in override:
        edited(toy, "    each: {arm: arm}\n", "    each: {arm: [cot]}\n")
    assert read(load_plan(toy, rung="demo", overrides=[override]))


def test_what_is_left_out_moves_no_other_place(toy: Path) -> None:
    """Lines are kept by number of stage: an error in the stage behind the one that is left out names its own line."""
    left = load_plan(toy, rung="demo", overrides=["gates.early=null", "more=null"])
    assert [stage.name for stage in left.stages] == ["data", "train", "evaluate"] and left.gates == ()
    text = error_of(toy, "gates.early=null", "train=null")
    assert f"toy.yaml:{line_of('needs: [train, data]')}: stages.evaluate.needs.0: unknown stage `train`" in text


def test_overrides_come_after_the_rung(toy: Path) -> None:
    assert load_plan(toy, rung="hero", overrides=["train.lr=1"]).stage("train").params["lr"] == 1


def test_routes_not_named_keep_their_usual_way(toy: Path) -> None:
    routes = load_plan(toy, rung="demo").gate("early").routes
    assert routes == {"go": "next", "no-go": "stop", "inconclusive": "phase2"}


def test_a_dumped_plan_loads_to_an_equal_plan_and_reads_the_same_in_yaml_1_1(toy: Path, tmp_path: Path) -> None:
    plan = load_plan(toy, rung="hero", overrides=["title='1e-3'"])
    (tmp_path / "plan.yaml").write_text(dump_plan(plan))
    again = load_plan(tmp_path / "plan.yaml")
    assert again == plan
    assert jobs(again) == jobs(plan)
    assert yaml.safe_load(dump_plan(plan)) == plan.model_dump(mode="json")


def test_file_parameters_become_absolute_and_must_exist(toy: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "valid.json").write_text("[]")
    plan = load_plan(toy, rung="demo", overrides=["data.valid=valid.json"])
    assert plan.stage("data").params["valid"] == str(tmp_path / "valid.json")
    text = error_of(toy, "data.valid=gone.json")
    assert f"override data.valid=gone.json: stages.data.params.valid: no such file: {tmp_path}/gone.json" in text


def test_data_files_are_found_wherever_they_are_nested() -> None:
    class Inner(Spec):
        file: DataFile

    class Outer(Spec):
        plain: DataFile
        maybe: DataFile | None
        missing: DataFile | None = None
        many: tuple[DataFile, ...]
        named: dict[str, DataFile]
        inner: Inner
        inners: tuple[Inner, ...]
        folder: Path

    outer = Outer.model_validate(
        {
            "plain": "/a",
            "maybe": "/b",
            "many": ["/c", "/d"],
            "named": {"x": "/e"},
            "inner": {"file": "/f"},
            "inners": [{"file": "/g"}],
            "folder": "/not-a-data-file",
        }
    )
    assert {".".join(map(str, keys)): str(path) for keys, path in data_files(outer)} == {
        "plain": "/a",
        "maybe": "/b",
        "many.0": "/c",
        "many.1": "/d",
        "named.x": "/e",
        "inner.file": "/f",
        "inners.0.file": "/g",
    }


# ---- YAML


def test_yaml_is_read_by_the_core_schema() -> None:
    text = (
        "{a: 1e-3, b: 1E5, c: .5, d: 5., e: 010, f: 1:30, g: yes, h: on, i: 2024-01-01, j: ~, k: True, l: '1', m: -7}"
    )
    assert read_text(text, "x").data == {
        "a": 1e-3, "b": 1e5, "c": 0.5, "d": 5.0, "e": 10, "f": "1:30", "g": "yes", "h": "on", "i": "2024-01-01",
        "j": None, "k": True, "l": "1", "m": -7,
    }  # fmt: skip
    assert read_text('!!float "1e-4"', "x").data == 1e-4


@pytest.mark.parametrize(
    "value", ["1e-3", "on", "null", "~", "010", "1:30", "yes", "", "true", "1", ".5", "a: b", "# c"]
)
def test_texts_that_look_like_something_else_survive_a_round_trip(value: str) -> None:
    assert read_text(dump({"on": [value]}), "x").data == {"on": [value]}
    assert yaml.safe_load(dump({"on": [value]})) == {"on": [value]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x:3: a: duplicate key, first on line 1"),
        ("a: {b: 1,\n  b: 2}\n", "x:2: a.b: duplicate key, first on line 1"),
        (
            "a: !!python/object/apply:os.system ['true']\n",
            "x:1: tag `tag:yaml.org,2002:python/object/apply:os.system`",
        ),
        ("a: !!python/name:os.system\n", "x:1: tag `tag:yaml.org,2002:python/name:os.system` is not plain data"),
        ("a: [1\n", "not YAML: expected ',' or ']'"),
        ("a: &x [*x]\n", "too large or nested too deeply"),
        ("? [1]\n: 2\n", "x:1: a key must be a plain name"),
        ("a: !!int abc\n", "x:1: `abc` is no int"),
    ],
)
def test_yaml_that_is_no_plan_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(StepwellError) as caught:
        read_text(text, "x")
    assert message in str(caught.value)


def test_aliases_cannot_blow_up() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    with pytest.raises(StepwellError, match="too large"):
        read_text(bomb, "x")


# ---- jobs


def test_jobs_are_the_product_of_axes_in_topological_order(toy: Path) -> None:
    made = jobs(load_plan(toy, rung="demo"))
    assert [job.id for job in made] == [
        "data",
        "train.cot.0",
        "train.cot.1",
        "train.shared.0",
        "train.shared.1",
        "evaluate.cot",
        "evaluate.shared",
        "more",
    ]
    place = {job.id: index for index, job in enumerate(made)}
    assert all(place[need] < place[job.id] for job in made for need in job.needs)


def test_needs_are_matched_on_shared_axes_and_take_all_of_the_others(toy: Path) -> None:
    needs = {job.id: job.needs for job in jobs(load_plan(toy, rung="demo"))}
    assert needs["train.shared.1"] == ("data",)
    assert needs["evaluate.cot"] == ("train.cot.0", "train.cot.1", "data")
    assert needs["more"] == ("evaluate.cot", "evaluate.shared", "data")


def test_needs_equal_brute_force_over_all_pairs() -> None:
    plan = Plan(
        study="s",
        title="t",
        question="q",
        axes={"a": ("x", "y"), "b": (0, 1, 2), "c": (True, False)},
        stages=(
            StageSpec(name="one", kind="mock.train", each={"a": "a", "b": "b"}, needs=("base",)),
            StageSpec(name="base", kind="mock.data"),
            StageSpec(name="two", kind="mock.train", each={"b": "b", "c": "c"}, needs=("one",)),
        ),
    )
    made = jobs(plan)
    assert len(made) == 1 + 6 + 6
    for job in made:
        stage = plan.stage(job.stage)
        wanted = {
            other.id
            for other in made
            if other.stage in stage.needs
            and not any(axis in job.axes and job.axes[axis] != value for axis, value in other.axes.items())
        }
        assert set(job.needs) == wanted


def test_a_gate_holds_the_stages_that_need_what_it_judges_unless_it_names_others(toy: Path) -> None:
    plan = load_plan(toy, rung="demo")
    made = jobs(plan)
    assert [job.id for job in held_by(plan, plan.gate("early"), made)] == ["evaluate.cot", "evaluate.shared"]
    gate = plan.gate("early").model_copy(update={"before": (Selector(stage="evaluate", where={"arm": "cot"}),)})
    assert [job.id for job in held_by(plan, gate, made)] == ["evaluate.cot"]
    chosen = select(made, [Selector(stage="train", where={"arm": ("cot",), "seed": (1,)}), Selector(stage="data")])
    assert [job.id for job in chosen] == ["data", "train.cot.1"]


def test_the_plan_is_frozen(toy: Path) -> None:
    plan = load_plan(toy, rung="demo")
    with pytest.raises(ValueError, match="frozen"):
        plan.workers = 7  # pyright: ignore[reportAttributeAccessIssue]


# ---- errors: each names file and line (or the override), the key, what was found, what is allowed


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "    params: {lr: 1e-3, shape: {width: 8}}",
            "    params:\n      lrr: 1e-3",
            "{file}:16: stages.train.params.lrr: unknown key; allowed: lr, steps, shape, sizes, mode, amsgrad, "
            "accuracy, engine; did you mean `lr`?",
        ),
        ("title: A toy", "title: A toy\ntitel: x", "{file}:3: titel: unknown key; allowed: study, title, "),
        ("params: {n: 10}", "params: {n: -10}", "{file}:10: stages.data.params.n: must be greater than 0, found -10"),
        ("width: 8", "width: 0", "{file}:15: stages.train.params.shape.width: must be greater than 0, found 0"),
        ("    needs: [data]", "    needs: [dta]", "{file}:13: stages.train.needs.0: unknown stage `dta`; stages: "),
        ("    needs: [data]", "    needs: [data, more]", "train.needs: cycle: train needs more needs evaluate "),
        ("kind: mock.data", "kind: toy.dat", "{file}:9: stages.data.kind: unknown kind `toy.dat`; kinds: "),
        ("    after: [train]", "    after: [trian]", "{file}:27: gates.early.after.0: unknown stage `trian`; stages: "),
        (
            "metric: accuracy",
            "metric: acuracy",
            "{file}:29: gates.early.criteria.0.metric: stage train (mock.train) yields no record with `acuracy`; "
            "fields: accuracy, epoch, loss, n, step; did you mean `accuracy`?",
        ),
        (
            "kind: validation",
            "kind: item",
            "{file}:31: gates.early.criteria.0.where.kind: unknown record kind `item`; record kinds: validation, step",
        ),
        (
            "where: {kind: validation, arm: cot}",
            "where: {kind: validation, amr: cot}",
            "{file}:31: gates.early.criteria.0.where.amr: records of validation have no field `amr`; fields: "
            "accuracy, arm, epoch, kind, loss, n, seed, step; did you mean `arm`?",
        ),
        (
            "where: {kind: validation, arm: cot}",
            "where: {kind: validation, arm: frozen}",
            "gates.early.criteria.0.where.arm: stage train has no job with arm frozen; its arm: cot, shared",
        ),
        (
            "    after: [train]",
            "    after: [{stage: train, where: {arm: [frozen]}}]",
            "{file}:27: gates.early.after.0.where.arm: selects no job: arm of stage train is cot, shared, found frozen",
        ),
        (
            "    after: [train]",
            "    after: [{stage: train, where: {sed: [1]}}]",
            "{file}:27: gates.early.after.0.where.sed: of stage train: unknown axis `sed`; axes: arm, seed; did you",
        ),
        ("each: {arm: arm, seed: seed}", "each: {arm: arms}", "{file}:14: stages.train.each.arm: unknown axis `arms`"),
        ("arm: [cot, shared]", "arm: [cot, a/b]", "stages.train.each.arm: `a/b` cannot be part of a file name"),
        ("arm: [cot, shared]", "arm: []", "stages.train.each.arm: an axis without values makes no job"),
        ("arm: [cot, shared]", "arm: [cot, cot]", "stages.train.each: 2 jobs would be called `train.cot.0`"),
        ("inconclusive: phase2", "inconclusive: phse2", "unknown route `phse2`; routes: next, stop, phase2"),
        ("    after: [train]\n", "    after: [train]\n    given: {kind: validation, acuracy: 1}\n",
         "{file}:28: gates.early.given.acuracy: unknown field `acuracy`; fields: accuracy, arm"),
        ("    after: [train]\n", "    after: [train]\n    given: {kind: vote}\n",
         "{file}:28: gates.early.given.kind: unknown record kind `vote`; record kinds: "),
        ("    on: phase2", "    on: phase3", "{file}:36: gates.early.routes.inconclusive: unknown route `phase2`"),
        ("name: evaluate", "name: seed", "stages.seed.name: `seed` is a key of the plan; give the stage another name"),
        ("  - name: more", "  - name: train", "stages.train.name: `train` is the name of 2 stages"),
        ("study: toy\n", "", "{file}:1: study: required key is missing"),
        ('comparison: ">="', 'comparison: "=>"', "gates.early.criteria.0.comparison: allowed: `>=`, `>`, `<=` or `<`"),
        ("threshold: .7", "threshold: high", "{file}:35: gates.early.criteria.0.threshold: must be a number, found"),
        ("params: {n: 10}", "params: {n: '10'}", "{file}:10: stages.data.params.n: must be a whole number, found"),
        ("params: {n: 10}", "params: {n: true}", "{file}:10: stages.data.params.n: must be a whole number, found true"),
        ("params: {n: 10}", "params: 10", "{file}:10: stages.data.params: must be a mapping of keys, found 10"),
        ("  demo: {}", "  demo:", "{file}:38: rungs.demo: must be a mapping of dotted keys to values"),
        ("  demo: {}", "  demo: {trian.lr: 1}", "{file}:38: unknown key `trian.lr`; allowed: data"),
        ("  demo: {}", "  demo: {train.lrr: 1}", "{file}:38: stages.train.params.lrr: unknown key; allowed: lr, "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_line_key_and_what_is_allowed(toy: Path, old: str, new: str, message: str) -> None:
    text = error_of(edited(toy, old, new))
    expected = message.replace("{file}", str(toy))
    assert expected in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", "override train.lrr=1: stages.train.params.lrr: unknown key; allowed: lr, steps, "),
        ("train.shape.widht=1", "stages.train.params.shape.widht: unknown key; allowed: width; did you mean `width`?"),
        ("trian.lr=1", "override trian.lr=1: unknown key `trian.lr`; allowed: "),
        ("trian.lr=1", "did you mean `train`?"),
        ("train=1", "train is a stage; say which of its parameters: train.PARAMETER"),
        ("gates.earl.threshold=1", "unknown gate `earl`; gates: early; did you mean `early`?"),
        ("gates.early=1", "gates.early is a gate; say which of its fields"),
        ("gates.early.treshold=1", "unknown key `gates.early.treshold`; allowed: name, asks, "),
        ("gates.early.criteria.4.threshold=1", "leads through gates.0.criteria"),
        ("train.lr.x=1", "`train.lr.x` leads through stages.1.params.lr, which holds 0.001"),
        ("train.lr", "override `train.lr` is not of the form key=value"),
        ("train.lr=[1", "override train.lr=[1: not YAML"),
        ("train.lr=abc", 'override train.lr=abc: stages.train.params.lr: must be a number, found "abc"'),
        ("train.amsgrad=1", "stages.train.params.amsgrad: must be true or false, found 1"),
        ("train.mode=fats", 'stages.train.params.mode: allowed: `fast` or `slow`, found "fats"; did you mean `fast`?'),
        ("workers=0", "override workers=0: workers: must be greater than or equal to 1, found 0"),
        (
            "engine=procss",
            'engine: allowed: `inline`, `process`, `ray` or `slurm`, found "procss"; did you mean `process`?',
        ),
        ("train.each.arm=cot", "unknown axis `cot`; axes: arm, seed (a value is written as a list: [cot])"),
        ("evaluate.each.arm=[x]", "stage train has no job with arm x; its arm: cot, shared"),
        ("gates.early.minus={arm: direct}", "gates.early.criteria.0.minus.arm: stage train has no job with arm direct"),
        ("gates.early.per=sed", "gates.early.criteria.0.per: records of validation have no field `sed`"),
        ("gates.early.need=2", "`need` is about the values of `per`, which is missing"),
        ("gates.early.confidence=1.5", "gates.early.criteria.0.confidence: must be less than 1, found 1.5"),
        ("gates.early.before=[data]", "gates.early.before: cycle through a gate: data waits for train waits for data"),
        ("gates.early.criteria.0.stage=data", "`data` is not in the gate's `after` (train)"),
        ("rung=hero", "unknown key `rung`"),
    ],
)
def test_wrong_overrides_are_named(toy: Path, override: str, message: str) -> None:
    assert message in error_of(toy, override)


def test_of_a_union_of_models_the_keys_of_the_one_meant_are_listed(toy: Path) -> None:
    edited(toy, "params: {lr: 1e-3, shape: {width: 8}}", "params: {engine: {kind: steam, pressure: 3}}")
    assert load_plan(toy, rung="demo").stage("train").params["engine"] == {"kind": "steam", "pressure": 3}
    text = error_of(toy, "train.engine.presure=4")
    assert "stages.train.params.engine.presure: unknown key; allowed: kind, pressure; did you mean `pressure`?" in text
    assert "engine" in error_of(toy, "train.engine.kind=stem")


def test_every_problem_of_a_kind_is_listed_at_once(toy: Path) -> None:
    text = error_of(toy, "train.lrr=1", "train.stps=2", "data.m=1")
    assert text.count("unknown key; allowed") == 3


def test_rungs_and_plans_that_are_not_there(toy: Path, tmp_path: Path) -> None:
    assert "unknown rung `heros`; rungs: demo, hero; did you mean `hero`?" in error_of(toy, rung="heros")
    assert "this plan has rungs, and none was named; rungs: demo, hero" in error_of(toy, rung=None)
    assert "no such file" in error_of(tmp_path / "gone.yaml")
    assert "this is a folder" in error_of(tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    assert "a plan is a mapping of keys, found nothing" in error_of(tmp_path / "empty.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a text file in UTF-8" in error_of(tmp_path / "binary.yaml")
    with pytest.raises(StepwellError, match="unknown plan `thougths`; shipped plans: "):
        load_plan("thougths")
    one_size = toy_kinds.PLAN[: toy_kinds.PLAN.index("rungs:")]
    toy.write_text(one_size)
    assert load_plan(toy).rung == "base"
    assert "unknown rung `demo`; this plan has one size, `base`" in error_of(toy)


@pytest.mark.parametrize(("bands", "good"), [(((0, 0.5), (0.5, 1)), True), (((0, 0.6), (0.5, 1)), False)])
def test_bands_may_touch_but_not_overlap(bands, good: bool) -> None:
    criterion = Criterion(metric="accuracy", stage="train", comparison=">=", threshold=0.5)
    made = tuple(Band(low=low, high=high, route="next") for low, high in bands)

    def gate(criteria=(criterion,)) -> GateSpec:
        return GateSpec(name="g", asks="?", after=(Selector(stage="train"),), criteria=criteria, bands=made)

    if good:
        assert gate().routes_to() == {"next", "stop"}
        with pytest.raises(ValueError, match="bands go with exactly one criterion, found 2"):
            gate((criterion, criterion))
    else:
        with pytest.raises(ValueError, match=r"bands overlap: \[0, 0.6\] -> next and \[0.5, 1\] -> next"):
            gate()


def test_a_plan_made_in_python_is_checked_too() -> None:
    stage = StageSpec(name="train", kind="mock.train", needs=("nothing",))
    plan = Plan(study="mine", title="t", question="q", stages=(stage,))
    with pytest.raises(StepwellError, match=r"plan mine: stages.train.needs.0: unknown stage `nothing`; stages: train"):
        jobs(plan)


# ---- kinds


def test_kinds_are_registered_once_and_listed_when_unknown() -> None:
    known = kinds.kind("mock.train")
    assert kinds.register(known) is known
    other = kinds.Kind(name="mock.train", params=toy_kinds.DataParams, run="x:y", yields={})
    with pytest.raises(StepwellError, match=r"kind `mock.train` is registered already"):
        kinds.register(other)
    with pytest.raises(StepwellError, match=r"unknown kind `mock.trian` \(did you mean `mock.train`\?\)"):
        kinds.kind("mock.trian")
    assert kinds.resolve("toy_kinds:train") is toy_kinds.train
    for wrong in ("toy_kinds:nothing", "no_such_module:x", "toy_kinds"):
        with pytest.raises(StepwellError, match="cannot be imported"):
            kinds.resolve(wrong)


def test_line_numbers_of_the_toy_plan_are_those_of_an_independent_count(toy: Path) -> None:
    for text, override in itertools.product(["metric: accuracy"], ["gates.early.where={kind: step}"]):
        assert f":{line_of(text)}: gates.early.criteria.0.metric" in error_of(toy, override)
