"""Batched decoding writes what one row at a time would, and what transformers' own `generate` writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stepwell.backbone import HFBackbone
from stepwell.decode import Decoded, greedy, greedy_prompts, left_padded
from stepwell.errors import StepwellError
from stepwell.shapes import Shape

SHAPES = {
    "gpt2": Shape(architecture="gpt2", vocabulary=11, width=32, layers=2, heads=4, max_positions=40),
    "llama": Shape(
        architecture="llama", vocabulary=11, width=32, layers=2, heads=4, key_value_heads=2, max_positions=40
    ),
    "qwen2": Shape(
        architecture="qwen2", vocabulary=11, width=32, layers=2, heads=4, key_value_heads=2, max_positions=40
    ),
    "pythia": Shape(architecture="gpt_neox", vocabulary=11, width=32, layers=2, heads=2, max_positions=40, tied=False),
}
LENGTHS = (9, 3, 1, 6, 12, 3, 7)
STOP = (4, 9)


@pytest.fixture(params=SHAPES)
def backbone(request: pytest.FixtureRequest) -> HFBackbone:
    backbone = HFBackbone.from_shape(SHAPES[request.param], precision="fp64", device="cpu")
    torch.manual_seed(4)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.35)
    return backbone


@pytest.fixture
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(11, (n,), generator=generator).tolist() for n in LENGTHS]


def by_generate(backbone: HFBackbone, prompt: list[int], limit: int) -> Decoded:
    """The independent reference: transformers, one row at a time, without a cache."""
    ids = torch.tensor([prompt])
    out = backbone.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, use_cache=False,
        eos_token_id=list(STOP), pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return Decoded(ids=tuple(token for token in out if token not in STOP), stopped=out[-1] in STOP)


def test_batched_is_generate_one_at_a_time(backbone: HFBackbone, prompts: list[list[int]]):
    wanted = [by_generate(backbone, prompt, 14) for prompt in prompts]
    assert {len(one.ids) for one in wanted} != {14}, "no row stops early: the comparison would be empty"
    for batch_size in (1, 3, 64):
        assert greedy_prompts(backbone, prompts, stop=STOP, limit=14, batch_size=batch_size) == wanted


def test_every_row_has_its_own_limit(backbone: HFBackbone, prompts: list[list[int]]):
    limits = [0, 1, 2, 5, 14, 14, 3]
    found = greedy_prompts(backbone, prompts, stop=STOP, limit=limits)
    for prompt, limit, one in zip(prompts, limits, found, strict=True):
        assert one == (by_generate(backbone, prompt, limit) if limit else Decoded(ids=(), stopped=False))


def test_a_small_model_decodes_the_same_way(prompts: list[list[int]]):
    from stepwell.small import SmallConfig, SmallLM

    config = SmallConfig(vocabulary=11, width=16, layers=2, heads=2, max_positions=40, embedding_std=1.0)
    small = SmallLM(config, seed=1).double().eval()
    single = greedy_prompts(small, prompts, stop=STOP, limit=9, batch_size=1)
    assert len({len(one.ids) for one in single}) > 1
    assert greedy_prompts(small, prompts, stop=STOP, limit=9) == single


class Counting(nn.Module):
    """Writes token n in step n, so that row r stops after what its prompt says; counts rows and columns."""

    width, vocabulary, max_positions = 2, 30, None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls: list[tuple[int, int]] = []

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return ids[..., None].double().expand(*ids.shape, 2)

    def forward(self, embeds: torch.Tensor, *, cache: Any = None, skip: int = 0, **_: Any) -> torch.Tensor:
        self.calls.append((embeds.shape[0], embeds.shape[1]))
        cache.length += embeds.shape[1]
        return embeds[:, skip:]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(hidden[..., 0].long() - 1, 30).double()

    def new_cache(self) -> Counter:
        return Counter()


class Counter:
    length = 0

    def clone(self) -> Counter:
        return self

    def select(self, rows: torch.Tensor) -> Counter:
        return self


def test_finished_rows_leave_the_batch():
    backbone = Counting()
    found = greedy_prompts(backbone, [[3], [9], [5]], stop=[0], limit=20)
    assert [one.ids for one in found] == [(2, 1), (8, 7, 6, 5, 4, 3, 2, 1), (4, 3, 2, 1)]
    assert all(one.stopped for one in found)
    # The prompts, then one column a step for the rows that still write: 3 rows twice, 2 rows twice, 1 row four times.
    assert backbone.calls == [(3, 1)] + [(3, 1)] * 2 + [(2, 1)] * 2 + [(1, 1)] * 4


def test_a_prompts_cache_serves_several_continuations(backbone: HFBackbone, prompts: list[list[int]]):
    ids, mask = left_padded(prompts)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = backbone.new_cache()
    with torch.no_grad():
        hidden = backbone(backbone.embed(ids), positions=positions, mask=mask, cache=cache)[:, -1]
    arguments: Any = {"cache": cache, "mask": mask, "positions": positions[:, -1] + 1, "stop": STOP}
    first = greedy(backbone, hidden, limit=14, **arguments)
    assert cache.length == ids.shape[1]
    assert greedy(backbone, hidden, limit=14, **arguments) == first
    assert [one.ids[:2] for one in greedy(backbone, hidden, limit=2, **arguments)] == [one.ids[:2] for one in first]
    assert first == greedy_prompts(backbone, prompts, stop=STOP, limit=14)


def test_left_padding():
    ids, mask = left_padded([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


def test_no_prompts_no_work():
    assert greedy_prompts(Counting(), [], stop=[0], limit=3) == []


def test_what_cannot_be_decoded_is_named(backbone: HFBackbone):
    with pytest.raises(StepwellError, match="prompt 1 is empty"):
        greedy_prompts(backbone, [[1], []], stop=STOP, limit=3)
    with pytest.raises(StepwellError, match=r"the limits \[-1\] do not fit 1 rows"):
        greedy_prompts(backbone, [[1]], stop=STOP, limit=-1)
    with pytest.raises(StepwellError, match="2 limits for 1 prompts"):
        greedy_prompts(backbone, [[1]], stop=STOP, limit=[1, 2])
    with pytest.raises(StepwellError, match="decoding may reach position 40, but the model knows 40 positions"):
        greedy_prompts(backbone, [[1] * 30], stop=STOP, limit=12)
    greedy_prompts(backbone, [[1] * 30], stop=STOP, limit=11)  # the last token is written, not read
