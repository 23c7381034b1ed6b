"""What a step of `wire` computes and holds, counted as it runs, against its share and against the estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_wire import kept, reader_of, small_items, small_wire
from torch.utils.flop_counter import FlopCounterMode

from stepwell.answers import Asked
from stepwell.devices import Memory, Precision
from stepwell.losses import Weighing, teacher_forced_ce
from stepwell.studies.qa.cost import Reader
from stepwell.studies.wire import cost
from stepwell.studies.wire.model import Wire
from stepwell.studies.wire.objective import Objective, Rows, answers_of, read_answers
from stepwell.studies.wire.params import StageAParams, StageBParams, TrainingParams
from stepwell.tasks.base import QA

VECTORS, ROWS = 8, 8
MOST = 1.15
B = StageBParams.model_validate({"recipe": {"steps": 1}})


def objective(wire: Wire, items: list[QA], params: TrainingParams = B) -> Objective:
    found = Objective(wire, params, tuple(params.losses.terms), seed=0)
    found.learn_teacher(items, 4, lambda done: None)
    return found


def losses(found: Objective, rows: Rows, params: TrainingParams = B) -> Callable[[], torch.Tensor]:
    weights = params.weights() if isinstance(params, StageBParams) else params.losses

    def forward() -> torch.Tensor:
        weighed = Weighing(weights).step(1.0, found.counts([rows], VECTORS))
        with found.wire.speaking():
            return weighed.loss(found.terms(rows, VECTORS, step=0, gold=1.0))

    return forward


def plain(wire: Wire, items: list[QA]) -> torch.Tensor:
    """Cross-entropy of the same answers after as many columns, which are tokens."""
    columns = len(wire.contract.bos) + VECTORS + len(wire.contract.anchor)
    answers = answers_of(wire.contract, [wire.contract.target(item) for item in items])
    with wire.speaking():
        asked = Asked.of_ids(wire.backbone, [[5] * columns] * len(items))
        return teacher_forced_ce(read_answers(wire.backbone, asked, answers)).sum


def prefix(wire: Wire, items: list[QA]) -> torch.Tensor:
    found = wire.prefix(wire.latents(items, VECTORS))
    assert isinstance(found, torch.Tensor)
    return found


def flop(work: Callable[[], torch.Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        work().backward()
    return counter.get_total_flops()


def test_a_step_of_stage_b_costs_at_most_its_share() -> None:
    """Its share = what a plain LoRA step and the encoder cannot do without, in FLOP, forward and backward.

    That is the cross-entropy of the same answers after as many columns (BOS, M, anchor, answer), which are tokens,
    through the same LoRA; and encoder and adapter alone, from the texts to the prefix.
    """
    wire, items = small_wire(vectors=VECTORS, lora=True), small_items(ROWS)
    found = objective(wire, items)
    step = flop(losses(found, Rows(latent=tuple(items), text=(), number=0)))
    share = flop(lambda: plain(wire, items)) + flop(lambda: prefix(wire, items).sum())
    assert share < step <= MOST * share
    # Asking the teacher anew would be over it: the count sees what is not needed.
    assert step + _asking(found, items) > MOST * share


def _asking(found: Objective, items: list[QA]) -> int:
    with FlopCounterMode(display=False) as counter:
        found._learn(items)
    return counter.get_total_flops()


def test_the_text_of_stage_b_is_a_plain_lora_step() -> None:
    wire, items = small_wire(vectors=VECTORS, lora=True), small_items(ROWS)
    step = flop(losses(objective(wire, items), Rows(latent=(), text=tuple(items), number=0)))

    def text() -> torch.Tensor:
        answers = answers_of(wire.contract, [wire.contract.target(item) for item in items])
        with wire.speaking():
            asked = Asked.of_ids(wire.backbone, [wire.contract.text(item) for item in items])
            return teacher_forced_ce(read_answers(wire.backbone, asked, answers)).sum

    assert step == flop(text)


def test_the_first_k_tokens_take_no_forward_pass_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    wire, items = small_wire(vectors=VECTORS, lora=True), small_items(ROWS)
    rows, counted, passes = Rows(latent=tuple(items), text=(), number=0), {}, []
    honest = type(wire.backbone).forward

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        passes.append(options.get("skip"))
        return honest(self, *args, **options)

    for k in (1, 8):
        params = B.model_copy(update={"k": k})
        found = objective(wire, items, params)
        with monkeypatch.context() as patch:
            patch.setattr(type(wire.backbone), "forward", forward)
            passes.clear()
            counted[k] = flop(losses(found, rows, params))
        assert len(passes) == 1, "all losses are of one forward pass"
    assert counted[1] == counted[8]


def test_the_teacher_is_asked_once_an_item_and_heard_at_supervised_positions_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire, items = small_wire(vectors=VECTORS, lora=True), small_items(ROWS)
    asked, heads = [], []
    found = Objective(wire, B, tuple(B.losses.terms), seed=0)
    learn, logits = found._learn, wire.backbone.logits
    monkeypatch.setattr(found, "_learn", lambda some: asked.extend(item.id for item in some) or learn(some))
    monkeypatch.setattr(wire.backbone, "logits", lambda hidden: heads.append(hidden.shape) or logits(hidden))
    found.learn_teacher(items * 3, 4, lambda done: None)
    assert sorted(asked) == sorted(item.id for item in items)
    supervised = sum(len(found.target(item)) for item in items)
    assert sum(shape[0] for shape in heads) == supervised and all(len(shape) == 2 for shape in heads)
    heads.clear()
    for _ in range(2):
        losses(found, Rows(latent=tuple(items), text=(), number=0))().backward()
    assert len(asked) == len(items), "no epoch asks it again"
    # The student's and the teacher's, in each of two steps.
    assert [shape[0] for shape in heads] == [supervised] * 4


# Bytes.


def known_of(wire: Wire) -> Reader:
    contract = wire.contract
    known = reader_of(wire.backbone, longest=80)
    return replace(known, anchor=len(contract.anchor), answer=contract.params.max_answer_tokens)


def estimated(wire: Wire, params: TrainingParams, known: Reader) -> Memory:
    class Data:
        n_train, n_held = ROWS, 4

    given = params.model_copy(update={"recipe": params.recipe.model_copy(update={"batch_size": ROWS})})
    work = cost._training(given, known, wire.arm, wire.vectors, {"data": Data()}, latent=1.0)
    assert work.memory is not None
    return work.memory


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", ["a", "b as latents", "b as text"])
def test_what_a_step_keeps_is_estimated_within_a_factor(case: str, precision: Precision) -> None:
    """Tensors that one micro-batch saves for its backward pass, all rows as long as the estimate takes them to be.

    The estimate is at least that, and at most 1.7 times: it counts gradients and what comes and goes in the losses too.
    """
    wire = small_wire(vectors=VECTORS, lora=case != "a", precision=precision)
    items = small_items(ROWS)
    params: TrainingParams = StageAParams.model_validate({"recipe": {"steps": 1}}) if case == "a" else B
    if case != "a":
        params = params.model_copy(update={"lora": wire.lora})
    longest = max(len(wire.contract.prompt(item)) for item in items)
    read = max(len(wire.encoder.prompt(item.context or "", item.question)) for item in items)
    known = replace(known_of(wire), longest=longest if case == "b as text" else round(read / cost.BYTES_A_TOKEN))
    if case != "b as text":
        known = replace(known, answer=max(len(wire.contract.target(item)) for item in items))
    text = case == "b as text"
    rows = Rows(latent=() if text else tuple(items), text=tuple(items) if text else (), number=0)
    work = losses(objective(wire, items, params), rows, params)
    measured = kept(work, wire.backbone, *wire.parts().values())
    memory = estimated(wire, params, known)
    assert 1 <= (memory.activations + memory.logits) / measured <= 1.7
    trained = sum(p.numel() for part in wire.parts().values() for p in part.parameters() if p.requires_grad)
    assert memory.training == pytest.approx(16 * trained, rel=0.1)
    weights = sum(p.nbytes for name, p in wire.backbone.named_parameters() if ".lora_" not in name)
    assert memory.weights == weights


def test_the_teachers_cache_is_in_the_estimate() -> None:
    wire = small_wire(vectors=VECTORS)
    params = StageAParams.model_validate({"recipe": {"steps": 1, "batch_size": ROWS}})
    assert estimated(wire, params, known_of(wire)).host == ROWS * cost.ANSWER * wire.backbone.width * 4
    untaught = params.model_copy(update={"losses": params.losses.model_copy(update={"terms": {"first_token": 1.0}})})
    assert estimated(wire, untaught, known_of(wire)).host == 0
