"""The shipped plan `thoughts`, so small that all its stages run in seconds; what it is made of stays as shipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stepwell.plan import Plan, dump_plan, load_plan

ARMS = ("cot", "direct", "continuous", "frozen", "shared", "removal")
SYMBOLS = (
    "data.n_train=200",
    "data.audited=20",
    "data.n_steer=24",
    "data.n_test=16",
    "model.model.width=16",
    "model.model.heads=2",
    "model.selftest_steps=80",
    "model.selftest_lr=1e-2",
    "model.curriculum.min_steps=4",
    "model.curriculum.max_steps=6",
    "train.steps=30",
    "train.batch_size=8",
    "train.warmup_steps=5",
    "train.validate_every=5",
    "train.log_every=2",
    "train.checkpoint_every=4",
    "train.restart=null",
    "evaluate.batch_size=8",
    "intervene.batch_size=8",
    "intervene.browse=3",
    "probe.folds=2",
    "probe.layers=[1]",
    "probe.permutations=9",
    "probe.smallest_class=2",
    "trace.items=3",
    "trace.layers=[1]",
)
TEXT = (
    "model.model={kind: text, name: null, width: 32, layers: 2, heads: 2, dropout: 0.1, max_positions: 160}",
    "model.curriculum={stages: 2, epochs_per_stage: 1, mix: {share: 0.2}}",
    "data.n_train=40",
    "data.audited=0",
    "train.steps=null",
    "train.epochs=3",
    "train.batch_size=4",
    "train.accumulation=2",
    "train.reset_optimizer=epoch",
    "train.schedule=constant",
    "train.validate_every=0",
    "trace.decode=false",
)


def tiny(
    *overrides: str, text: bool = False, arms: Sequence[str] = ("cot", "continuous"), gates: Sequence[str] = ("setup",)
) -> Plan:
    """The rung `demo` with a few items and steps, these arms, and those of its gates that these arms can answer."""
    small = (*SYMBOLS, *TEXT) if text else SYMBOLS
    plan = load_plan("thoughts", rung="demo", overrides=[f"axes.arm=[{', '.join(ARMS)}]", *small, *overrides])
    kept = tuple(
        gate.model_copy(update={"routes": {**gate.routes, "no-go": "next"}})
        for gate in plan.gates
        if gate.name in gates
    )
    changed = plan.model_copy(update={"axes": {**plan.axes, "arm": tuple(arms)}, "gates": kept})
    return Plan.model_validate(changed.model_dump())


def write_plan(plan: Plan, path: Path) -> Path:
    """The plan as a file, for the command line."""
    path.write_text(dump_plan(plan))
    return path


def records(folder: Path, job: str, kind: str | None = None) -> list[dict[str, Any]]:
    """A job's records."""
    lines = (folder / "records" / f"{job}.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if kind in (None, record["kind"])]


def events(folder: Path, *names: str) -> list[dict[str, Any]]:
    """The events of these names; a torn last line is none."""

    def lines() -> Iterator[dict[str, Any]]:
        path = folder / "events.jsonl"
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            if line.endswith(b"\n"):
                yield json.loads(line)

    return [event for event in lines() if event["event"] in names]


def started(folder: Path) -> list[str]:
    """Jobs in the order in which they were started."""
    return [event["job"] for event in events(folder, "job-started")]


def contents(folder: Path, *parts: str) -> dict[str, str]:
    """Each file of these parts with its hash: records and artifacts must not depend on interruptions."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in parts or ("records", "artifacts")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def model_folder(folder: Path) -> Path:
    """A GPT-2 of a few thousand weights with a byte-level tokenizer of its own, as transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from stepwell.backbone import HFBackbone
    from stepwell.shapes import Shape
    from stepwell.tasks.prosqa import generate_graphs, render

    items = render(generate_graphs("mini", 300, 1), "mini", 1)
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>", "<<"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([item.question + "".join(item.steps) + "### " for item in items], trainer)
    shape = Shape(
        architecture="gpt2", vocabulary=tokenizer.get_vocab_size(), width=32, layers=2, heads=2, max_positions=256
    )
    backbone = HFBackbone.from_shape(shape, device="cpu")
    backbone.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    backbone.save(folder)
    return folder
