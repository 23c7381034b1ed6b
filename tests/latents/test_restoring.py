"""The restorer's training: its losses against a slow reference, its start and end, and that it can be cut in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_models import tiny
from stepwell.backbone import HFBackbone
from stepwell.errors import StageFailed, StepwellError
from stepwell.latents.compressor import Compressor, token_counts
from stepwell.latents.restorer import Restorer, reconstruction
from stepwell.latents.restorer_specs import RestorerParams, RestoringRecipe
from stepwell.latents.restoring import Step, train_restorer
from stepwell.store.checkpoints import load_checkpoint, save_checkpoint

DIMS, BOS = 6, 2


def some_prompts(count: int = 11, seed: int = 0) -> list[list[int]]:
    """Prompts of 4 to 11 tokens below 40, BOS first, rare ones rarely."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1.0, 41)
    lengths = torch.randint(3, 11, (count,), generator=generator).tolist()
    return [[BOS, *torch.multinomial(weights, n, replacement=True, generator=generator).tolist()] for n in lengths]


class Setting:
    """A tiny model in float64, its corpus, and a restorer."""

    def __init__(self, name: str = "llama", *, precision: Any = "fp64", adapter: Any = "residual", **options) -> None:
        self.backbone: HFBackbone = tiny(name, precision)
        self.prompts = some_prompts()
        self.counts = token_counts(self.prompts, self.backbone.vocabulary)
        with torch.no_grad():
            self.table = self.backbone.embed(torch.arange(self.backbone.vocabulary)[None])[0].clone()
        compressor = Compressor.fit(self.table, self.counts, DIMS)
        self.restorer = Restorer(compressor, RestorerParams(adapter=adapter, hidden=8, **options))

    def train(self, recipe: RestoringRecipe, **options: Any) -> tuple[list[Step], dict[str, Any]]:
        """The steps, and the state at the end."""
        steps: list[Step] = []
        state = train_restorer(
            self.restorer, self.backbone, self.counts, recipe, prompts=self.prompts, on_step=steps.append, **options
        )
        return steps, state

    def measures(self) -> dict[str, float | None]:
        """Of the whole corpus, exactly."""
        with torch.no_grad():
            return dict(reconstruction(self.restorer(self.table), self.table, self.counts).means())

    def weights(self) -> Tensor:
        """All of what is trained, in one vector."""
        assert self.restorer.net is not None
        return torch.cat([parameter.detach().flatten() for parameter in self.restorer.net.parameters()])


def recipe(**options: Any) -> RestoringRecipe:
    return RestoringRecipe(**{"steps": 6, "batch_size": 4, "lr": 3e-3} | options)


def test_mse_takes_a_linear_adapter_to_the_pca_optimum():
    setting, optimum = Setting(adapter="linear"), Setting(adapter="pca").measures()["mse"]
    before = setting.measures()["mse"]
    setting.train(recipe(steps=200, batch_size=128, lr=3e-2, schedule="cosine"))
    after = setting.measures()["mse"]
    assert before is not None and after is not None and optimum is not None
    assert optimum <= after < 1.03 * optimum < before


@pytest.mark.parametrize(("objective", "measure", "better"), [("mse", "mse", -1), ("cosine", "cosine", 1)])
def test_a_residual_begins_at_the_optimum_of_pca_and_passes_it(objective: str, measure: str, better: int):
    setting, optimum = Setting(), Setting(adapter="pca").measures()
    assert setting.measures() == pytest.approx(optimum, rel=1e-12)
    setting.train(recipe(objective=objective, steps=100, batch_size=128, lr=1e-2))
    after, before = setting.measures()[measure], optimum[measure]
    assert after is not None and before is not None
    assert better * after > better * before + 0.02 * abs(before)


def test_tokens_are_drawn_as_often_as_they_occur():
    setting = Setting()
    drawn = torch.zeros(setting.backbone.vocabulary)
    embed = setting.backbone.embed

    def listening(ids: Tensor) -> Tensor:
        drawn.add_(torch.bincount(ids.flatten(), minlength=len(drawn)))
        return embed(ids)

    setting.backbone.embed = listening  # pyright: ignore[reportAttributeAccessIssue]
    setting.train(recipe(steps=5, batch_size=2000))
    assert drawn.sum() == 10_000
    assert not drawn[setting.counts == 0].any()
    expected = setting.counts / setting.counts.sum() * 10_000
    seen = setting.counts > 0
    chi_square = ((drawn - expected)[seen].square() / expected[seen]).sum()
    assert chi_square < 2 * int(seen.sum())


def terms_slowly(setting: Setting, prompts: list[list[int]], kept: int) -> tuple[Tensor, Tensor]:
    """Mean squared error in units of the corpus's mean square, and mean nats, prompt by prompt, token by token."""
    corpus = setting.table.repeat_interleave(setting.counts, 0)
    errors, nats = [], []
    for prompt in prompts:
        rows = []
        for column, token in enumerate(prompt):
            row = setting.table[token]
            if column >= kept:
                restored = setting.restorer(row)
                errors.append((restored - row).square().mean() / corpus.square().mean())
                row = restored
            rows.append(row)
        for column in range(max(kept, 1), len(prompt)):
            # The token at `column` from all before it, by the model's own forward.
            logits = setting.backbone.model(inputs_embeds=torch.stack(rows[:column])[None]).logits[0, -1]
            nats.append(-logits.log_softmax(-1)[prompt[column]])
    return torch.stack(errors).mean(), torch.stack(nats).mean()


@pytest.mark.parametrize(
    ("name", "kept"), [("llama", 0), ("llama", 1), ("llama", 2), ("gpt2", 1), ("qwen2", 1), ("pythia", 0)]
)
def test_reading_is_the_slow_reference_on_rows_of_all_lengths(name: str, kept: int):
    setting = Setting(name)
    steps, _ = setting.train(recipe(objective="reading", batch_size=11, clip=None), kept=kept, until=1)
    fresh = Setting(name)
    mse, nats = terms_slowly(fresh, fresh.prompts, kept)
    assert steps[0].losses.unweighted == pytest.approx({"mse": float(mse.detach()), "next_token": float(nats.detach())})
    # In the first step each term is its own running mean: both weigh 1.
    (mse / mse.detach() + nats / nats.detach()).backward()
    assert fresh.restorer.net is not None
    gradient = torch.cat([p.grad.flatten() for p in fresh.restorer.net.parameters() if p.grad is not None])
    assert steps[0].grad_norm == pytest.approx(float(gradient.norm()), rel=1e-7)
    assert steps[0].tokens == sum(len(prompt) - kept for prompt in fresh.prompts)


@pytest.mark.parametrize("objective", ["mse", "cosine"])
def test_phase_1_is_the_slow_reference(objective: str):
    setting, drawn = Setting(), []
    embed = setting.backbone.embed
    setting.backbone.embed = lambda ids: drawn.append(ids) or embed(ids)  # pyright: ignore[reportAttributeAccessIssue]
    steps, _ = setting.train(recipe(objective=objective, batch_size=40), until=1)
    vectors = setting.table[torch.cat([ids.flatten() for ids in drawn])]
    restored = Setting().restorer.compressor(vectors)  # where the residual starts
    error, corpus = (restored - vectors).square().mean(1), setting.table.repeat_interleave(setting.counts, 0)
    if objective == "mse":
        wanted = float((error / corpus.square().mean()).mean())
    else:
        unlike = 1 - torch.nn.functional.cosine_similarity(restored, vectors)
        wanted = float((unlike + 0.1 * error / vectors.square().mean(1)).mean())
    assert steps[0].losses.loss == pytest.approx(wanted, rel=1e-9)
    assert steps[0].tokens == 40


@pytest.mark.parametrize("objective", ["mse", "cosine", "reading"])
def test_accumulated_micro_batches_are_one_large_batch(objective: str):
    one, other = Setting(), Setting()
    if objective == "reading":  # all prompts at once, in whatever order
        one.prompts = other.prompts = some_prompts(8)
    steps, _ = one.train(recipe(objective=objective, batch_size=8, steps=3))
    parts, _ = other.train(recipe(objective=objective, batch_size=2, accumulation=4, steps=3))
    assert len(steps) == len(parts) == 3  # optimizer steps, not micro-batches
    if objective == "reading":
        # Only the weights differ, whose first measure is the first micro-batch's.
        assert steps[0].losses.unweighted == pytest.approx(parts[0].losses.unweighted)
    else:
        torch.testing.assert_close(one.weights(), other.weights(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("objective", ["mse", "reading"])
def test_cut_in_pieces_it_ends_with_the_same_weights(tmp_path: Path, objective: str):
    asked = recipe(objective=objective, steps=9, schedule="cosine", warmup_steps=2, accumulation=2)
    whole, cut = Setting(), Setting()
    wanted, last = whole.train(asked)
    first, state = cut.train(asked, until=4)
    save_checkpoint(tmp_path / "checkpoint", {}, state)
    resumed = Setting()
    second, end = resumed.train(asked, state=load_checkpoint(tmp_path / "checkpoint")[1])
    assert [step.fields() for step in first + second] == [step.fields() for step in wanted]
    assert torch.equal(resumed.weights(), whole.weights())
    assert end["step"] == last["step"] == 9
    third, _ = resumed.train(asked, state=end)
    assert third == []


def test_a_state_is_a_copy():
    setting = Setting()
    asked = recipe()
    _, state = setting.train(asked, until=3)
    held = setting.weights()
    setting.train(asked, state=state)
    other = Setting()
    other.train(asked, state=state, until=3)
    assert torch.equal(other.weights(), held) and not torch.equal(setting.weights(), held)


def test_alpha_and_beta_are_one_over_the_running_means():
    setting = Setting()
    steps, _ = setting.train(recipe(objective="reading", steps=8, memory=0.5))
    for number in range(1, 8):
        for name in ("mse", "next_token"):
            past = [step.losses.unweighted[name] or 0 for step in steps[:number]]
            shares = [0.5 ** (number - 1 - i) for i in range(number)]
            mean = sum(share * value for share, value in zip(shares, past, strict=True)) / sum(shares)
            assert steps[number].losses.weights[name] == pytest.approx(1 / mean)
    fields = steps[3].fields()
    assert fields["loss"] == pytest.approx(fields["weighted_mse"] + fields["weighted_next_token"])
    assert fields["weighted_mse"] == pytest.approx(fields["weight_mse"] * fields["loss_mse"])


def test_reading_lowers_what_the_model_needs_to_know():
    setting = Setting("gpt2")
    steps, _ = setting.train(recipe(objective="reading", steps=60, batch_size=11, lr=1e-2))
    first, last = (steps[i].losses.unweighted["next_token"] for i in (0, -1))
    assert first is not None and last is not None and last < first - 0.3


def test_each_prompt_is_read_once_an_epoch_and_short_ones_together():
    setting, lengths = Setting(), []
    setting.prompts = some_prompts(40, seed=1)
    forward = setting.backbone.forward
    setting.backbone.forward = lambda embeds, **rest: lengths.append(embeds.shape[1]) or forward(embeds, **rest)
    steps, _ = setting.train(recipe(objective="reading", steps=20, batch_size=4))
    compressed = sum(len(prompt) - 1 for prompt in setting.prompts)
    assert sum(step.tokens for step in steps[:10]) == sum(step.tokens for step in steps[10:]) == compressed
    columns = 4 * sum(length - 1 for length in lengths[:10])
    assert columns < 1.15 * compressed  # padding
    assert lengths[:10] != lengths[10:]


@pytest.mark.parametrize("objective", ["mse", "reading"])
def test_the_model_stays_as_it_is(objective: str):
    setting = Setting()
    before = {name: tensor.clone() for name, tensor in setting.backbone.state_dict().items()}
    buffers = {name: tensor.clone() for name, tensor in setting.restorer.compressor.state_dict().items()}
    setting.backbone.train()
    frozen = next(setting.backbone.parameters()).requires_grad_(False)
    setting.train(recipe(objective=objective))
    assert all(torch.equal(before[name], tensor) for name, tensor in setting.backbone.state_dict().items())
    assert all(torch.equal(buffers[name], tensor) for name, tensor in setting.restorer.compressor.state_dict().items())
    assert all(parameter.grad is None for parameter in setting.backbone.parameters())
    assert [p for p in setting.backbone.parameters() if not p.requires_grad] == [frozen]
    assert setting.backbone.training


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    setting = Setting()
    rarest = int(torch.where(setting.counts > 0, setting.counts, 10**6).argmin())
    with torch.no_grad():
        setting.backbone.model.get_input_embeddings().weight[rarest] = float("nan")
    steps, state = setting.train(recipe(steps=30, batch_size=8, most_skipped=0.9))
    skipped = [step for step in steps if step.skipped]
    assert 0 < len(skipped) < 30 and state["skipped"] == len(skipped)
    assert all(not step.losses.finite for step in skipped)
    assert setting.weights().isfinite().all()
    with pytest.raises(StageFailed, match=r"3 of \d+ steps of the restorer were skipped: loss or gradient not finite"):
        setting.train(recipe(steps=200, batch_size=8, most_skipped=0.01))


@pytest.mark.parametrize("objective", ["mse", "cosine"])
def test_a_token_whose_embedding_is_zero_is_no_trouble(objective: str):
    setting = Setting()
    often = int(setting.counts.argmax())
    with torch.no_grad():
        setting.backbone.model.get_input_embeddings().weight[often] = 0.0
    steps, _ = setting.train(recipe(objective=objective, batch_size=64, accumulation=2))
    assert not any(step.skipped for step in steps) and setting.weights().isfinite().all()
    assert all(step.tokens == 128 for step in steps)


def test_clean_steps_are_not_skipped():
    steps, state = Setting().train(recipe(most_skipped=0.0))
    assert state["skipped"] == 0 and not any(step.skipped for step in steps)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"adapter": "pca"}, "the adapter `pca` has no weights to train"),
        ({"counts": torch.zeros(61, dtype=torch.int64)}, "the corpus is empty"),
        (
            {"counts": torch.ones(60, dtype=torch.int64)},
            r"counts are of \(60,\) ids; the model has 61 embeddings of 32",
        ),
        ({"prompts": []}, "there are no prompts to read"),
        ({"prompts": [[2, 3, 4], [2]]}, "prompt 1 has 1 tokens, of which 1 are kept"),
        ({"prompts": [[2, 3], [2] * 41]}, "prompt 1 has 41 tokens, and the model knows 40 positions"),
        ({"prompts": [[2, 3], [2, 61]]}, "prompt 1 has an unknown id; the model has 61 embeddings"),
        ({"prompts": [[2, 3], [2, -1]]}, "prompt 1 has an unknown id"),
    ],
)
def test_what_cannot_be_trained_is_refused(change: dict[str, Any], said: str):
    setting = Setting(adapter=change.pop("adapter", "residual"))
    for name, value in change.items():
        setattr(setting, name, value)
    with pytest.raises(StepwellError, match=said):
        setting.train(recipe(objective="reading"))


def test_a_compressor_of_a_part_of_the_corpus_is_refused():
    setting = Setting()
    many = setting.counts * 3
    setting.counts, whole = many, setting.counts
    with pytest.raises(StepwellError, match="less than half of the") as raised:
        setting.train(recipe())
    assert f"fitted on {int(whole.sum())} tokens" in raised.value.cause
    setting.counts = whole * 2
    setting.train(recipe(steps=1))


def test_a_state_of_another_training_is_refused():
    setting = Setting()
    _, state = setting.train(recipe(), until=1)
    with pytest.raises(StepwellError, match=r"the state is of another training: lr was 0\.003, and is 0\.1"):
        setting.train(recipe(lr=0.1), state=state)
    with pytest.raises(StepwellError, match="seed was 0, and is 1"):
        setting.train(recipe(), state=state, seed=1)


def test_a_floor_needs_a_schedule_that_falls():
    with pytest.raises(ValueError, match="`floor` goes with `schedule: cosine`"):
        recipe(floor=0.1)


def test_schedule():
    asked = recipe(steps=10, warmup_steps=2, schedule="cosine", floor=0.1)
    steps, _ = Setting().train(asked)
    rates = [step.lr / asked.lr for step in steps]
    assert rates[0] == pytest.approx(0.5) and max(rates) == rates[1]
    assert rates[5] == pytest.approx(0.55) and rates[-1] < 0.13
    assert all(step.lr == recipe().lr for step in Setting().train(recipe())[0])


def test_a_bfloat16_model_is_read_through_a_float32_restorer():
    setting = Setting(precision="bf16")
    steps, _ = setting.train(recipe(objective="reading"))
    assert setting.weights().dtype == torch.float32
    assert all(step.losses.finite for step in steps)
    exact = Setting(precision="fp32").train(recipe(objective="reading"))[0]
    assert steps[0].losses.loss == pytest.approx(exact[0].losses.loss, rel=0.03)
