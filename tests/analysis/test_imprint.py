"""The measures of fitted vectors, on losses that are known in closed form."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from stepwell.analysis.imprint import (
    BITS,
    Gain,
    information_gain,
    interpolation,
    noise_robustness,
    quantisation,
    quantised,
    similarity,
    smallest_slots,
    storage,
    token_distance,
    vector_bytes,
)
from stepwell.small import SmallConfig, SmallLM


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bowl(centre: Tensor):
    """A loss that grows with the square of the distance to a centre."""
    return lambda sets: (sets - centre).square().sum((1, 2))


# Bits and bytes.


def test_gain_is_in_bits():
    # A target of 4 tokens drawn from 8 alike costs 4 log2 8 = 12 bits; vectors that halve the choice save a bit each.
    gain = information_gain(4 * math.log(8), 4 * math.log(4), slots=2, tokens=4)
    assert (gain.bits, gain.bits_per_slot, gain.bits_per_token) == pytest.approx((4, 2, 1))
    worse = information_gain(1.0, 2.0, slots=1, tokens=1).bits
    assert worse is not None and worse == pytest.approx(-1 / math.log(2))


def test_a_gain_can_be_undefined():
    expected = "the loss with the vectors is not finite"
    assert information_gain(1.0, math.inf, slots=1, tokens=1) == Gain(
        bits=None, bits_per_slot=None, bits_per_token=None, why=expected
    )
    assert information_gain(math.nan, math.inf, slots=1, tokens=1).why.startswith("the loss without and with")
    with pytest.raises(ValueError, match="0 slots and 1 tokens"):
        information_gain(1.0, 1.0, slots=0, tokens=1)


def test_gain_of_a_model_is_that_of_its_probabilities():
    torch.manual_seed(0)
    model = SmallLM(SmallConfig(vocabulary=11, width=16, heads=2, max_positions=8)).double()
    target, mode = torch.tensor([[3, 5, 1]]), torch.tensor([[7]])

    @torch.no_grad()
    def nats(vectors: Tensor) -> float:
        before = torch.cat([model.embed(mode), vectors], 1)
        embeds = torch.cat([before, model.embed(target)], 1)
        columns = embeds.shape[1]
        hidden = model(embeds, positions=torch.arange(columns)[None], mask=torch.ones(1, columns, dtype=torch.bool))
        places = before.shape[1] - 1 + torch.arange(3)
        return -float(model.logits(hidden[0, places]).log_softmax(-1)[torch.arange(3), target[0]].sum())

    vectors = drawn(1, 2, 16)
    without, with_them = nats(vectors[:, :0]), nats(vectors)
    expected = math.log2(math.exp(-with_them) / math.exp(-without))
    assert information_gain(without, with_them, slots=2, tokens=3).bits == pytest.approx(expected)


def test_bytes_by_hand():
    # 49,152 ids take 16 bits; "\u00e9" takes 2 bytes in UTF-8.
    found = storage("caf\u00e9", tokens=3, vocabulary=49_152, slots=1, width=576)
    assert (found.text, found.ids, found.packed_ids) == (5, 6, 6)
    assert found.vectors == {"float32": 2304, "bfloat16": 1152, "int8": 580, "int4": 292}
    assert found.times_ids("bfloat16") == 192
    # 50,257 ids take 16 bits too, 128,256 take 17: 3 of them 51 bits, or 4 bytes each.
    assert storage("x", tokens=3, vocabulary=50_257, slots=1, width=8).packed_ids == 6
    large = storage("x", tokens=3, vocabulary=128_256, slots=1, width=8)
    assert (large.ids, large.packed_ids) == (12, 7)
    assert storage("", tokens=0, vocabulary=2, slots=1, width=1).times_ids("int4") is None
    assert vector_bytes(3, 5, "int4") == 8 + 12
    with pytest.raises(ValueError, match="1 tokens of 0"):
        storage("x", tokens=1, vocabulary=0, slots=1, width=1)


# Quantisation.


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantisation_moves_no_number_by_more_than_half_a_step(bits: int):
    vectors = drawn(7, 33) * torch.logspace(-6, 6, 7, dtype=torch.float64)[:, None]
    most = 2 ** (bits - 1) - 1
    scale = vectors.abs().amax(1, keepdim=True) / most
    back = quantised(vectors, bits)
    assert ((back - vectors).abs() <= scale / 2 * (1 + 1e-12)).all()
    steps = back / scale
    assert torch.allclose(steps, steps.round())
    assert steps.round().unique().numel() <= 2 * most + 1
    # By brute force: no other step is nearer.
    grid = torch.arange(-most, most + 1, dtype=torch.float64) * scale[..., None]
    nearest = (grid - vectors[..., None]).abs().amin(-1)
    assert torch.allclose((back - vectors).abs(), nearest)


def test_quantisation_keeps_zeros_and_whole_steps():
    vectors = torch.tensor([[0.0, 0.0], [-7.0, 3.0]])
    assert torch.equal(quantised(vectors, 4), vectors)
    with pytest.raises(ValueError, match="1 bits; 2 to 8 can be had"):
        quantised(vectors, 1)


def test_the_cost_of_quantisation():
    vectors = drawn(4, 32)
    eight, four = quantisation(bowl(vectors), vectors)
    assert (eight.bits, four.bits) == (8, 4)
    assert eight.value == pytest.approx(float((quantised(vectors, 8) - vectors).square().sum()))
    assert 0 < eight.change < four.change
    assert (eight.bytes, four.bytes) == (4 * 32 + 16, 2 * 32 + 16)
    shapes = {vector_bytes(4, 32, "int8"), vector_bytes(4, 32, "int4")}
    assert shapes == {eight.bytes, four.bytes}
    assert set(BITS) == {"float32", "bfloat16", "int8", "int4"}


# Noise.


def test_noise_costs_what_its_variance_says():
    vectors = drawn(3, 400)
    points = noise_robustness(bowl(vectors), vectors, scales=(0.0, 0.1, 0.2), draws=40, rows=7)
    assert points[0].value.value == 0.0
    size = float(vectors.square().mean())
    for point in points[1:]:
        expected = point.scale**2 * size * vectors.numel()
        assert point.value.low is not None and point.value.high is not None
        assert point.value.low < expected < point.value.high
        assert point.change == pytest.approx(point.value.value)
        assert point.value.n == 40
    # The same noise at every scale: twice the noise is four times the loss, to the last digits.
    assert points[2].change == pytest.approx(4 * points[1].change, rel=1e-9)


def test_noise_does_not_depend_on_how_many_are_measured_at_once():
    vectors = drawn(2, 8)
    one, many = (noise_robustness(bowl(vectors), vectors, rows=rows, seed=3) for rows in (1, 100))
    assert [point.change for point in one] == pytest.approx([point.change for point in many])
    assert one != noise_robustness(bowl(vectors), vectors, rows=1, seed=4)
    with pytest.raises(ValueError, match="0 draws"):
        noise_robustness(bowl(vectors), vectors, draws=0)


def test_a_rate_is_measured_as_a_loss_is():
    def near(sets: Tensor) -> Tensor:
        return (sets.abs().amax((1, 2)) < 1).double()

    vectors = torch.full((1, 4), 0.5, dtype=torch.float64)
    little, much = noise_robustness(near, vectors, scales=(0.01, 5.0), draws=20)
    assert little.value.value == 1.0
    assert much.value.value is not None and much.value.value < 0.5


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda sets: sets.sum(), "a measure of 1 sets of vectors has shape"),
        (lambda sets: sets.sum((1, 2)) * math.nan, "1 of 1 measures are not finite"),
    ],
)
def test_measures_are_checked(measure, message: str):
    with pytest.raises(ValueError, match=message):
        noise_robustness(measure, drawn(1, 2))


# Lines.


def test_no_barrier_in_a_bowl_and_one_over_a_hill():
    first, second = drawn(2, 5), drawn(2, 5, seed=1)
    assert interpolation(bowl(first), first, second).barrier == 0.0

    def hill(sets: Tensor) -> Tensor:
        # Along the line this is 4 t (1 - t): 0 at both ends, 1 half-way.
        way = second - first
        t = ((sets - first) * way).sum((1, 2)) / way.square().sum()
        return 4 * t * (1 - t) + 3 * t

    line = interpolation(hill, first, second, points=21, rows=4)
    assert line.barrier == pytest.approx(1.0)
    assert (line.fractions[0], line.fractions[10], line.fractions[-1]) == (0.0, 0.5, 1.0)
    assert (line.values[0], line.values[-1]) == pytest.approx((0.0, 3.0))
    with pytest.raises(ValueError, match="2 points between"):
        interpolation(hill, first, second, points=2)


# Geometry.


def test_distances_to_tokens_by_brute_force():
    table, vectors = drawn(9001, 6), drawn(5, 6, seed=1)
    vectors[2] = table[8999] + 1e-9
    vectors[4] = 0.0
    found = token_distance(vectors, table)
    distances = torch.stack([(table - vector).norm(dim=1) for vector in vectors])
    assert found.nearest == tuple(distances.argmin(1).tolist())
    assert found.nearest[2] == 8999
    assert found.distance == pytest.approx(distances.amin(1).tolist(), rel=1e-9)
    assert found.distance[2] == pytest.approx(1e-9 * math.sqrt(6), rel=1e-5)
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], table[None], dim=-1).amax(1)
    assert found.cosine[:4] == pytest.approx(cosines[:4].tolist())
    assert found.cosine[4] is None
    assert found.norm[0] == pytest.approx(float(vectors[0].norm() / table.norm(dim=1).mean()))
    assert token_distance(vectors, torch.zeros(3, 6)).norm == (None,) * 5


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_table_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"a table of shape \(9001, 6\)"):
        token_distance(drawn(1, 5), drawn(9001, 6))


def test_similarity_of_problems():
    a, b = drawn(3, 400), drawn(3, 400, seed=1)
    found = similarity({"a": a, "b": -2 * a, "c": b})
    assert found.ids == ("a", "b", "c")
    assert found.cosines[0, 1] == pytest.approx(-1.0)
    assert torch.allclose(found.cosines.diagonal(), torch.ones(3, dtype=torch.float64))
    expected = torch.nn.functional.cosine_similarity(a, b, dim=-1).mean()
    assert found.cosines[0, 2] == pytest.approx(float(expected))
    assert found.mean == pytest.approx(-1 / 3)
    assert similarity({"a": a}).mean is None
    with pytest.raises(ValueError, match="vectors of shapes"):
        similarity({"a": a, "b": a[:1]})


# The fewest slots.


def test_the_fewest_slots_are_found_with_few_questions():
    generator = random.Random(0)
    for _ in range(200):
        highest = generator.randint(1, 200)
        needed = generator.randint(1, highest)
        asked: list[int] = []

        def holds(slots: int, needed: int = needed, asked: list[int] = asked) -> bool:
            asked.append(slots)
            return slots >= needed

        found = smallest_slots(holds, highest=highest)
        assert found.slots == needed
        assert len(asked) == len(set(asked)) <= 2 * math.log2(highest) + 2
        assert list(found.tried) == asked


def test_no_slots_may_do():
    found = smallest_slots(lambda slots: False, highest=5)
    assert (found.slots, found.why) == (None, "not even 5 slots do")
    assert found.tried == {1: False, 2: False, 4: False, 5: False}
    assert smallest_slots(lambda slots: True, lowest=4, highest=128).slots == 4
    with pytest.raises(ValueError, match="slots from 3 to 2"):
        smallest_slots(lambda slots: True, lowest=3, highest=2)
