"""Losses against slow loops in float64, with random inputs and masks; and the faults that concern them, planted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from fit_models import tiny
from stepwell.decode import left_padded
from stepwell.errors import StepwellError
from stepwell.losses import (
    Answers,
    LossWeights,
    Ramp,
    Reading,
    Summed,
    TableMoments,
    Targets,
    TeacherStates,
    TextToLatent,
    Weighing,
    coins,
    cosine_rms,
    first_token_ce,
    gold_share,
    hidden_kd,
    k_token_ce,
    kd,
    manifold,
    prefix_alignment,
    reconstruction,
    teacher_forced_ce,
)
from stepwell.objectives import IGNORE

EOS, BOS, V, D = 1, 2, 13, 7
ANSWERS = ((5, 6, EOS), (7, EOS), (8, 9, 10, 11, EOS), (EOS,))


class Head:
    """A backbone of which only the head is asked: a matrix, in float64."""

    def __init__(self) -> None:
        self.weight = torch.randn(V, D, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        self.asked = 0

    def logits(self, hidden: Tensor) -> Tensor:
        self.asked += len(hidden)
        return hidden @ self.weight.T


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ones(columns: int, rows: int = len(ANSWERS)) -> Tensor:
    return torch.ones(rows, columns, dtype=torch.bool)


def answers() -> Answers:
    return Answers.of(ANSWERS, eos=EOS, bos=BOS)


def a_reading(seed: int, before: Tensor | None = None, skip: int = 0, head: Any = None) -> tuple[Reading, Tensor]:
    """A reading of random states, NaN wherever nothing is predicted; and the states."""
    before = ones(4) if before is None else before
    targets = answers().after(before, skip=skip)
    hidden = random(len(ANSWERS), targets.columns, D, seed=seed)
    read = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    read.view(-1)[targets.index] = True
    hidden = hidden.masked_fill(~read[..., None], torch.nan).requires_grad_(True)
    return Reading.of(head or Head(), hidden, targets), hidden


def spots(before: int, skip: int = 0) -> list[tuple[int, int, int]]:
    """By brute force: (row, state, k) of every token, the state being that of the column before it."""
    return [(r, before + k - 1 - skip, k) for r, row in enumerate(ANSWERS) for k in range(len(row))]


def slow_nats(logits: Tensor, token: int) -> float:
    top = float(logits.max())
    return top + math.log(sum(math.exp(float(x) - top) for x in logits)) - float(logits[token])


def close(found: Summed, values: list[float]) -> None:
    assert found.count == len(values)
    torch.testing.assert_close(found.sum.detach(), torch.tensor(sum(values), dtype=torch.float64), rtol=1e-9, atol=1e-9)


# Where tokens are predicted.


@pytest.mark.parametrize("skip", [0, 2, 3])
def test_targets_are_the_tokens_of_the_answers_each_at_the_state_before_it(skip: int):
    targets = answers().after(ones(4), skip=skip)
    wanted = spots(4, skip)
    assert targets.index.tolist() == [r * targets.columns + state for r, state, _ in wanted]
    assert targets.tokens.tolist() == [ANSWERS[r][k] for r, _, k in wanted]
    assert targets.order.tolist() == [k for _, _, k in wanted]
    assert targets.rows == ANSWERS
    assert len(targets) == sum(map(len, ANSWERS)) == len(wanted)
    assert [targets.within(k) for k in (1, 2, 9)] == [4, 7, 11]


def test_targets_of_labels_agree_with_brute_force_wherever_the_labels_are():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, V, (6, 11), generator=generator)
    labels[torch.rand(6, 11, generator=generator) < 0.5] = IGNORE
    labels[:, 0] = IGNORE
    targets = Targets.of(labels, ones(11, 6))
    wanted = [(r, c) for r in range(6) for c in range(1, 11) if labels[r, c] != IGNORE]
    assert targets.index.tolist() == [r * targets.columns + c - 1 for r, c in wanted]
    assert targets.tokens.tolist() == [int(labels[r, c]) for r, c in wanted]


def test_the_end_token_is_learned_and_padding_of_the_same_id_is_not():
    """Fault 04: pads (= EOS) unmasked, and no EOS to learn."""
    block = Answers.of(((5, EOS), (6, 7, 8, EOS)), eos=EOS, bos=BOS)
    padded_with_eos = Answers(ids=block.ids.masked_fill(~block.real, EOS), real=block.real)
    targets = padded_with_eos.after(ones(3, 2))
    assert targets.rows == ((5, EOS), (6, 7, 8, EOS)), "each end token once, no padding"


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (((5, EOS), ()), "answer 1 has no tokens"),
        (((BOS, 5, EOS),), "answer 0 begins with BOS (2)"),
        (((5, 6),), "answer 0 does not end with the end token (1)"),
        ((), "there are no answers to learn"),
    ],
)
def test_an_answer_that_teaches_something_else_is_refused(rows: Any, fault: str):
    """Fault 04: BOS asked for at t = 0, no EOS."""
    with pytest.raises(StepwellError) as caught:
        Answers.of(rows, eos=EOS, bos=BOS)
    assert fault in str(caught.value)


def test_an_answer_that_was_cut_may_lack_its_end_and_a_model_may_have_one_token_for_both_ends():
    assert Answers.of(((5, 6, 7), (4, EOS)), eos=EOS, bos=BOS, cut_at=3).real.sum() == 5
    with pytest.raises(StepwellError, match="does not end"):
        Answers.of(((5, 6),), eos=EOS, bos=BOS, cut_at=3)
    assert Answers.of(((EOS,),), eos=EOS, bos=EOS).ids.tolist() == [[EOS]]


def test_a_prompt_padded_on_the_right_is_refused_and_on_the_left_it_is_not():
    """Fault 05: gathered from pad rows."""
    real = torch.tensor([[True, True, False], [True, True, True]])
    block = Answers.of(((5, EOS), (6, EOS)), eos=EOS, bos=BOS)
    with pytest.raises(StepwellError) as caught:
        block.after(real)
    assert "a token is predicted from a padded column (row 0)" in str(caught.value)
    assert "pad prompts on the left" in str(caught.value)
    assert len(block.after(real.flip(1))) == 4


def test_a_label_at_padding_and_one_that_nothing_predicts_are_refused():
    labels = torch.tensor([[IGNORE, 5, EOS]])
    with pytest.raises(StepwellError, match="supervised at a padded column"):
        Targets.of(labels, torch.tensor([[True, True, False]]))
    with pytest.raises(StepwellError, match="supervised that no hidden state predicts"):
        Targets.of(labels, ones(3, 1), skip=1)


def test_states_of_another_forward_pass_are_refused():
    targets = answers().after(ones(4))
    with pytest.raises(
        StepwellError, match=r"the hidden states are \(4, 8\), and the targets are of 4 rows of 9 states"
    ):
        Reading.of(Head(), random(4, 8, D), targets)


# Losses on tokens.


@pytest.mark.parametrize("skip", [0, 3])
def test_cross_entropies_agree_with_a_loop_and_take_one_forward_pass(skip: int):
    head = Head()
    reading, hidden = a_reading(1, skip=skip, head=head)
    values = [(k, slow_nats(hidden.detach()[r, s] @ head.weight.T, ANSWERS[r][k])) for r, s, k in spots(4, skip)]
    close(teacher_forced_ce(reading), [value for _, value in values])
    close(first_token_ce(reading), [value for k, value in values if k == 0])
    for most in (1, 2, 3, 8):
        close(k_token_ce(reading, most), [value for k, value in values if k < most])
    assert head.asked == len(values), "the head is asked once, and only where tokens are predicted"
    with pytest.raises(StepwellError, match="first 0 tokens"):
        k_token_ce(reading, 0)


def test_gradients_reach_the_predicting_states_only():
    reading, hidden = a_reading(2)
    k_token_ce(reading, 2).sum.backward()
    assert hidden.grad is not None
    touched = {(r, s) for r, s in hidden.grad.abs().sum(-1).nonzero().tolist()}
    assert touched == {(r, s) for r, s, k in spots(4) if k < 2}
    assert bool(hidden.grad.isfinite().all())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
def test_kd_agrees_with_a_loop_though_the_columns_differ(temperature: float):
    student, states = a_reading(3)
    real = torch.tensor([[False] * 4 + [True] * 2, [True] * 6, [False] + [True] * 5, [False] * 5 + [True]])
    teacher, taught = a_reading(4, before=real)
    weight, values = Head().weight, []
    for (r, s, _), (_, t, _) in zip(spots(4), spots(6), strict=True):
        p, q = (
            (x / temperature).softmax(-1).tolist()
            for x in (taught.detach()[r, t] @ weight.T, states.detach()[r, s] @ weight.T)
        )
        values.append(temperature**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)))
    found = kd(student, teacher, temperature=temperature)
    close(found, values)
    found.sum.backward()
    assert taught.grad is None, "the teacher learns nothing"
    assert states.grad is not None and bool(states.grad.isfinite().all())


def test_the_gradient_of_kd_does_not_shrink_with_the_temperature():
    """At high temperature it is (student - teacher) / V for centred logits (Hinton et al. 2015, equation 4)."""
    student, _ = a_reading(3)
    teacher, _ = a_reading(4)
    logits = student.logits.detach().requires_grad_(True)
    kd(Reading(student.targets, student.hidden, logits), teacher, temperature=1e4).sum.backward()
    centred = [x.detach() - x.detach().mean(-1, keepdim=True) for x in (logits, teacher.logits)]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, (centred[0] - centred[1]) / V, rtol=1e-2, atol=1e-4)


def test_hidden_kd_agrees_with_a_loop_though_the_columns_differ():
    """Fault 05: off by one. The states compared are those that predict the same token."""
    student, states = a_reading(5)
    teacher, taught = a_reading(6, before=ones(9))
    values = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(states.detach()[r, s], taught.detach()[r, t], strict=True)) / D
        for (r, s, _), (_, t, _) in zip(spots(4), spots(9), strict=True)
    ]
    found = hidden_kd(student, teacher)
    close(found, values)
    found.sum.backward()
    assert taught.grad is None


def test_a_model_is_no_distance_from_itself_and_one_column_off_is_seen():
    backbone = tiny("llama", "fp64")
    block = Answers.of(((5, 6, 7, EOS), (8, EOS)), eos=EOS, bos=BOS)
    before = torch.tensor([[3, 4, 9], [4, 9, 3]])
    ids, real = torch.cat((before, block.ids), 1), block.mask(ones(3, 2))
    positions = (real.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        hidden = backbone(backbone.embed(ids), positions=positions, mask=real)
    targets = block.after(ones(3, 2))
    with torch.no_grad():
        reading = Reading.of(backbone, hidden, targets)
    assert float(hidden_kd(reading, reading).sum) == 0.0
    assert abs(float(kd(reading, reading).sum)) < 1e-12
    shifted = Reading.of(backbone, hidden.roll(1, 1), targets)
    mean = hidden_kd(shifted, reading).mean
    assert mean is not None and float(mean) > 0.01


def test_a_padded_text_teacher_says_what_it_says_alone():
    """Fault 05: gathered from pad rows. Rows of a padded batch are those of each row alone, against transformers."""
    backbone = tiny("gpt2", "fp64")
    prompts, told = [(2, 9, 4, 11, 30), (2, 8), (2, 7, 7)], ((5, 6, EOS), (7, EOS), (EOS,))
    block = Answers.of(told, eos=EOS, bos=BOS)
    ids, before = left_padded(prompts)
    real = block.mask(before)
    everything = torch.cat((ids, block.ids), 1)
    positions = (real.cumsum(1) - 1).clamp(min=0)
    hidden = backbone(backbone.embed(everything), positions=positions, mask=real)
    reading = Reading.of(backbone, hidden, block.after(before))
    rows = reading.logits.split([len(answer) for answer in told])
    for prompt, answer, found in zip(prompts, told, rows, strict=True):
        alone = backbone.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        torch.testing.assert_close(found, alone[len(prompt) - 1 : -1], rtol=1e-9, atol=1e-9)


def test_a_teacher_of_other_answers_or_of_another_size_is_refused():
    student, _ = a_reading(3)
    block = Answers.of((*ANSWERS[:3], (5, EOS)), eos=EOS, bos=BOS)
    other = Reading.of(Head(), random(4, 9, D), block.after(ones(4)))
    for loss in (kd, hidden_kd):
        with pytest.raises(StepwellError, match="student and teacher do not predict the same tokens"):
            loss(student, other)
    with pytest.raises(StepwellError, match="13 and 12 logits"):
        kd(student, Reading(student.targets, student.hidden, student.logits[:, :-1]))
    with pytest.raises(StepwellError, match="7 and 6 wide"):
        hidden_kd(student, Reading(student.targets, student.hidden[:, :-1], student.logits))


def test_a_fixed_teacher_is_asked_once_an_item():
    head, asked = Head(), []
    teacher = TeacherStates(head)  # pyright: ignore[reportArgumentType]
    targets = answers().after(ones(4))
    hidden = random(4, targets.columns, D)

    def forward() -> Tensor:
        asked.append(1)
        return hidden

    first = teacher.read("abcd", targets, forward)
    turned = Answers.of(ANSWERS[::-1], eos=EOS, bos=BOS).after(ones(6))
    again = teacher.read("dcba", turned, forward)
    assert len(asked) == 1
    by_row = first.logits.split([len(row) for row in ANSWERS])
    torch.testing.assert_close(again.logits, torch.cat(by_row[::-1]))
    close_to_one_read = kd(again, again).sum
    assert abs(float(close_to_one_read)) < 1e-12
    other = Answers.of((*ANSWERS[:3], (5, EOS)), eos=EOS, bos=BOS).after(ones(4))
    teacher.read("abcd", other, forward)
    assert len(asked) == 2, "another answer is another item"
    with pytest.raises(StepwellError, match=r"4 ids \(3 of them differ\) are given for 4 rows"):
        teacher.read("aabc", targets, forward)


def test_half_precision_is_computed_in_single():
    reading, _ = a_reading(1)
    half = Reading(reading.targets, reading.hidden.bfloat16(), reading.logits.bfloat16())
    for loss in (teacher_forced_ce(half), kd(half, half), hidden_kd(half, half)):
        assert loss.sum.dtype == torch.float32


# Losses on vectors.


def vectors_with_padding(seed: int, rows: int = 5, columns: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Two lots of vectors and a mask; NaN at padding. The first lot takes gradients."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(rows, columns, generator=generator) < 0.6
    real[:, 0] = True
    first, second = (random(rows, columns, D, seed=seed + i).masked_fill(~real[..., None], torch.nan) for i in (1, 2))
    return first.requires_grad_(True), second, real


@pytest.mark.parametrize("seed", [0, 1])
def test_reconstruction_and_cosine_agree_with_a_loop_over_real_tokens(seed: int):
    restored, embeds, real = vectors_with_padding(seed)
    squares, cosines = [], []
    for r, c in real.nonzero().tolist():
        found, wanted = restored.detach()[r, c].tolist(), embeds[r, c].tolist()
        error = sum((a - b) ** 2 for a, b in zip(found, wanted, strict=True))
        norms = [math.sqrt(sum(a * a for a in x)) for x in (found, wanted)]
        cosine = sum(a * b for a, b in zip(found, wanted, strict=True)) / (norms[0] * norms[1])
        ratio = norms[0] / norms[1]
        squares.append(error / D)
        cosines.append(1 - cosine + 0.1 * ((ratio - 1) ** 2 + 2 * ratio * (1 - cosine)))
    close(reconstruction(restored, embeds, real), squares)
    found = cosine_rms(restored, embeds, real)
    close(found, cosines)
    (reconstruction(restored, embeds, real).sum + found.sum).backward()
    assert restored.grad is not None and bool(restored.grad.isfinite().all()), "NaN at padding goes nowhere"
    assert bool((restored.grad.abs().sum(-1) > 0).eq(real).all())


def test_a_token_whose_embedding_is_zero_has_no_direction():
    embeds = random(1, 3, D)
    embeds[0, 1] = 0
    restored = random(1, 3, D, seed=1)
    restored[0, 2] = 0
    restored.requires_grad_(True)
    found = cosine_rms(restored, embeds, ones(3, 1))
    assert found.count == 2
    found.sum.backward()
    assert restored.grad is not None and bool(restored.grad.isfinite().all())


@pytest.mark.parametrize("vectors", [1, 3, 5])
def test_prefix_alignment_agrees_with_a_loop(vectors: int):
    prefix = random(4, vectors, D, seed=8).requires_grad_(True)
    _, embeds, real = vectors_with_padding(4, rows=4)
    used = torch.rand(4, vectors, generator=torch.Generator().manual_seed(1)) < 0.7
    used[0, 0] = True
    values = []
    for row in range(4):
        tokens = embeds[row][real[row]]
        for m in range(vectors):
            begin, end = m * len(tokens) // vectors, -(-(m + 1) * len(tokens) // vectors)
            mean = tokens[begin:end].mean(0)
            vector = prefix[row, m].detach()
            values.append((row, m, 1 - float(vector @ mean) / (float(vector.norm()) * float(mean.norm()))))
    close(prefix_alignment(prefix, embeds, real), [value for *_, value in values])
    found = prefix_alignment(prefix, embeds, real, used)
    close(found, [value for row, m, value in values if used[row, m]])
    found.sum.backward()
    assert prefix.grad is not None and bool(prefix.grad.isfinite().all())


def test_a_prefix_of_the_stretch_means_is_aligned_and_an_empty_prompt_is_refused():
    _, embeds, real = vectors_with_padding(4)
    assert prefix_alignment(torch.ones(5, 2, D), torch.ones(5, 9, D) * 3, real).sum.abs() < 1e-5
    with pytest.raises(StepwellError, match="no real token to align"):
        prefix_alignment(random(5, 2, D), embeds, torch.zeros_like(real))


@pytest.mark.parametrize("vectors", [1, 2, 6])
def test_manifold_agrees_with_a_loop(vectors: int):
    table = random(40, D, seed=2) * 0.01 + 0.003
    moments = TableMoments.of(table)
    prefix = random(3, vectors, D, seed=3).mul(0.02)
    used = torch.rand(3, vectors, generator=torch.Generator().manual_seed(2)) < 0.6
    used[0], used[1, :1], used[2] = True, True, False
    prefix = prefix.masked_fill(~used[..., None], torch.nan).requires_grad_(True)
    values = []
    for row in range(2):
        for d in range(D):
            column = [float(x) for x in prefix.detach()[row, used[row], d]]
            mean = sum(column) / len(column)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in column) / len(column))
            mu = sum(float(x) for x in table[:, d]) / 40
            sigma = math.sqrt(sum((float(x) - mu) ** 2 for x in table[:, d]) / 40)
            values.append(((mean - mu) ** 2 + (deviation - sigma) ** 2) / sigma**2)
    found = manifold(prefix, moments, used)
    close(found, values)
    found.sum.backward()
    assert prefix.grad is not None and bool(prefix.grad.isfinite().all())


def test_rows_of_the_table_lie_near_it_and_vectors_from_elsewhere_do_not():
    table = random(500, D) * 0.01
    moments = TableMoments.of(table.float())
    near = manifold(table[:128].view(2, 64, D).float(), moments).mean
    far = manifold(random(2, 64, D, seed=1).float(), moments).mean
    assert near is not None and far is not None
    assert float(near) < 0.1 < 100 < float(far)
    with pytest.raises(StepwellError, match="1 dimensions of the embedding table never vary"):
        TableMoments.of(torch.cat((table, torch.ones(500, 1)), 1))


@pytest.mark.usefixtures("shapes_unchecked")
def test_shapes_that_do_not_fit_are_refused():
    embeds, real = random(2, 5, D), ones(5, 2)
    calls: list[Any] = [
        lambda: reconstruction(embeds[:, :4], embeds, real),
        lambda: cosine_rms(embeds, embeds, real[:, :4]),
        lambda: prefix_alignment(random(3, 2, D), embeds, real),
        lambda: prefix_alignment(random(2, 2, D), embeds, real, ones(3, 2)),
        lambda: manifold(random(2, 3, D + 1), TableMoments.of(random(9, D))),
    ]
    for call in calls:
        with pytest.raises(StepwellError, match="do not fit together"):
            call()


# One number of them all.


def summed(values: list[float], scale: Tensor) -> Summed:
    return Summed(sum=(torch.tensor(values, dtype=torch.float64) * scale).sum(), count=len(values))


def test_micro_batches_add_up_to_one_large_batch():
    weights = LossWeights(terms={"a": 3.0, "b": Ramp(start=0.2, end=1.0)})
    batches = [{"a": [1.0, 2.0, 6.0], "b": [5.0]}, {"a": [4.0], "b": []}]
    whole = {"a": [1.0, 2.0, 6.0, 4.0], "b": [5.0]}
    counts = {name: len(values) for name, values in whole.items()}
    gradients, logs = [], []
    for parts in ([whole], batches):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        step = Weighing(weights).step(0.5, counts)
        for part in parts:
            step.loss({name: summed(values, scale) for name, values in part.items()}).backward()
        gradients.append(float(scale.grad if scale.grad is not None else math.nan))
        logs.append(step.close())
    assert gradients[0] == pytest.approx(3 * 13 / 4 + 0.6 * 5, rel=1e-12)
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-12)
    assert logs[0] == logs[1]
    assert logs[0].fields() == pytest.approx(
        {"loss": 12.75, "loss_a": 3.25, "weighted_a": 9.75, "weight_a": 3.0, "loss_b": 5.0, "weighted_b": 3.0,
         "weight_b": 0.6}
    )  # fmt: skip


def test_a_term_without_elements_is_undefined_and_not_zero():
    scale = torch.ones((), dtype=torch.float64)
    step = Weighing(LossWeights(terms={"a": 1.0, "b": 2.0})).step(0, {"a": 2, "b": 0})
    step.loss({"a": summed([1.0, 3.0], scale), "b": summed([], scale)})
    logged = step.close()
    assert (logged.loss, logged.unweighted["b"], logged.weighted["b"]) == (2.0, None, None)
    assert logged.finite


def test_running_means_put_terms_of_any_scale_on_one_level():
    """Against the bias-corrected exponential mean, written out; the first step counts by its own first micro-batch."""
    weights = LossWeights(terms={"small": 1.0, "large": 2.0}, balance="running mean", memory=0.9)
    weighing, scale = Weighing(weights), torch.ones((), dtype=torch.float64)
    history = [(1e-4, 50.0), (3e-4, 70.0), (2e-4, 20.0), (1e-4, 90.0)]
    for i, values in enumerate(history):
        step = weighing.step(i / 4, {"small": 1, "large": 1})
        step.loss({n: summed([v], scale) for n, v in zip(("small", "large"), values, strict=True)})
        logged = step.close()
        for j, (name, factor) in enumerate((("small", 1.0), ("large", 2.0))):
            past = [old[j] for old in history[:i]] or [values[j]]
            shares = [0.1 * 0.9 ** (len(past) - 1 - k) for k in range(len(past))]
            mean = sum(s * v for s, v in zip(shares, past, strict=True)) / sum(shares)
            assert logged.weights[name] == pytest.approx(factor / mean)
            assert logged.unweighted[name] == pytest.approx(values[j])
            assert logged.weighted[name] == pytest.approx(factor * values[j] / mean)
    again = Weighing(weights)
    again.restore(weighing.state())
    assert again.running_mean("small") == weighing.running_mean("small") is not None


def test_what_is_not_finite_does_not_enter_the_running_means():
    weighing = Weighing(LossWeights(terms={"a": 1.0}, balance="running mean"))
    for value in (2.0, math.nan, math.inf):
        step = weighing.step(0, {"a": 1})
        step.loss({"a": summed([value], torch.ones((), dtype=torch.float64))})
        assert step.close().finite == math.isfinite(value)
    assert weighing.running_mean("a") == pytest.approx(2.0)


def test_losses_and_counts_that_are_not_those_of_the_weights_are_refused():
    weighing, scale = Weighing(LossWeights(terms={"a": 1.0, "b": 1.0})), torch.ones(())
    with pytest.raises(StepwellError, match=r"counted are not those of the weights \(missing: b; not weighed: c\)"):
        weighing.step(0, {"a": 1, "c": 1})
    step = weighing.step(0, {"a": 2, "b": 1})
    with pytest.raises(StepwellError, match=r"given are not those of the weights \(missing: b\)"):
        step.loss({"a": summed([1.0], scale)})
    with pytest.raises(StepwellError, match="no element of any loss"):
        step.loss({"a": summed([], scale), "b": summed([], scale)})
    step.loss({"a": summed([1.0], scale), "b": summed([1.0], scale)})
    with pytest.raises(StepwellError, match=r"had \{'a': 1, 'b': 1\} elements, and \{'a': 2, 'b': 1\} were counted"):
        step.close()


# Schedules and scheduled sampling.


def test_a_ramp_is_linear_in_its_stretch_and_constant_around_it():
    ramp = Ramp(start=0.2, end=1.0, begin=0.1, until=0.5)
    assert [ramp.at(x) for x in (0, 0.1, 0.3, 0.5, 1)] == pytest.approx([0.2, 0.2, 0.6, 1.0, 1.0])
    assert Ramp(begin=0.5, until=0.5).at(0.5) == 1.0
    weights = LossWeights.model_validate({"terms": {"kd": {"start": 0, "end": 2}, "first_token": 9}})
    assert weights.at(0.25) == {"kd": 0.5, "first_token": 9}


@pytest.mark.parametrize(
    ("terms", "fault"),
    [
        ({"a": 0.0}, "all weights are 0"),
        ({"a": -1.0}, "greater than or equal to 0"),
        ({}, "at least 1"),
        ({"a": {"begin": 0.6, "until": 0.5}}, "give begin <= until"),
    ],
)
def test_weights_that_train_nothing_are_refused(terms: Any, fault: str):
    with pytest.raises(ValidationError, match=fault):
        LossWeights(terms=terms)


def test_text_first_and_then_latents_more_and_more():
    schedule = TextToLatent()
    assert [schedule.keep(e, 4) for e in (0, 0.49, 0.5, 2.25, 4, 5)] == pytest.approx([0, 0, 0.5, 0.675, 0.85, 0.85])
    assert TextToLatent(warmup_epochs=2).keep(2, 2) == 0.85


def test_gold_tokens_give_way_down_to_one_half():
    assert [gold_share(e, 10) for e in (0, 1, 3, 5, 9)] == pytest.approx([1.0, 0.9, 0.7, 0.5, 0.5])
    assert gold_share(9, 10, floor=0.0) == pytest.approx(0.1)


def test_draws_depend_on_seed_step_and_use_only_and_have_their_probability():
    drawn = coins(0.7, 4000, seed=1, step=5, use="sampling")
    assert drawn == coins(0.7, 4000, seed=1, step=5, use="sampling")
    others = [coins(0.7, 4000, seed=1, step=6, use="sampling"), coins(0.7, 4000, seed=1, step=5, use="keep")]
    assert all(other != drawn for other in others)
    assert abs(sum(drawn) / 4000 - 0.7) < 0.03
    assert coins(0.0, 3, seed=0, step=0, use="x") == (False,) * 3
    assert coins(1.0, 3, seed=0, step=0, use="x") == (True,) * 3


def test_the_mixed_input_is_the_models_own_argmax_in_the_place_of_the_token():
    reading, _ = a_reading(7)
    count = len(reading.targets)
    gold = coins(0.5, count, seed=0, step=0, use="mix")
    mixed = answers().mixed(reading.predicted, gold)
    own = reading.logits.argmax(-1).tolist()
    place = 0
    for row, answer in enumerate(ANSWERS):
        for k, token in enumerate(answer):
            assert int(mixed[row, k]) == (token if gold[place] else own[place])
            place += 1
        assert mixed[row, len(answer) :].tolist() == [0] * (mixed.shape[1] - len(answer))
    assert answers().mixed(reading.predicted, [True] * count).equal(answers().ids)
    with pytest.raises(StepwellError, match="10 predicted tokens and 11 draws are given for 11 tokens"):
        answers().mixed(reading.predicted[:10], gold)


def test_with_a_real_model_mixing_changes_what_is_read_and_not_what_is_asked():
    """The argmax of token k is read at the column of token k: by a loop that decodes column by column."""
    backbone = tiny("gpt2", "fp64")
    block, before = Answers.of(((5, 6, 7, EOS),), eos=EOS, bos=BOS), torch.tensor([[2, 9, 4]])

    def read(ids: Tensor) -> Reading:
        row, real = torch.cat((before, ids), 1), block.mask(ones(3, 1))
        positions = (real.cumsum(1) - 1).clamp(min=0)
        hidden = backbone(backbone.embed(row), positions=positions, mask=real)
        return Reading.of(backbone, hidden, block.after(ones(3, 1)))

    gold = read(block.ids)
    for k in range(4):
        prefix = torch.cat((before, block.ids[:, :k]), 1)
        assert int(gold.predicted[k]) == int(backbone.model(input_ids=prefix).logits[0, -1].argmax())
    mixed = block.mixed(gold.predicted, (True, False, True, True))
    assert mixed.tolist() == [[5, int(gold.predicted[1]), 7, EOS]]
    again = read(mixed)
    torch.testing.assert_close(again.logits[:2], gold.logits[:2], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(again.logits[2:], gold.logits[2:])
    wanted = F.cross_entropy(again.logits, block.ids[0], reduction="sum")
    torch.testing.assert_close(teacher_forced_ce(again).sum, wanted)
