"""Adapter and calibration: against plain arithmetic, per example, with gradients that are finite and right."""

from __future__ import annotations

from math import erf, sqrt

import pytest
import torch
from torch import Tensor, nn

from fit_models import SHAPES, tiny
from stepwell.errors import StepwellError
from stepwell.latents.adapter import Adapter, calibrate, embedding_rms
from stepwell.latents.encoder_specs import AdapterSpec


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def adapter(**changed: object) -> Adapter:
    made = Adapter(AdapterSpec.model_validate({"inner": 7, **changed}), 4, 5, rms=0.03).double()
    for name, parameter in made.named_parameters():
        if name != "scale":
            nn.init.normal_(parameter, std=0.6, generator=torch.Generator().manual_seed(len(name)))
    return made


def rms_of(prefix: Tensor) -> Tensor:
    return prefix.flatten(1).square().mean(1).sqrt()


@torch.no_grad()
@pytest.mark.parametrize("learned", [True, False])
def test_an_adapter_is_its_arithmetic(learned: bool):
    made, latents = adapter(learned_scale=learned), normal(3, 2, 4)
    if made.scale is not None:
        made.scale.fill_(1.7)
    weights = dict(made.named_parameters())

    def gelu(row: list[float]) -> list[float]:
        return [x * (1 + erf(x / sqrt(2))) / 2 for x in row]

    def linear(name: str, row: list[float]) -> list[float]:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return [
            sum(float(w) * x for w, x in zip(line, row, strict=True)) + float(b)
            for line, b in zip(weight, bias, strict=True)
        ]

    found = made(latents)
    for row, example in enumerate(latents):
        vectors = []
        for latent in example.tolist():
            deep = linear("mlp.4", gelu(linear("mlp.2", gelu(linear("mlp.0", latent)))))
            both = [a + b for a, b in zip(deep, linear("skip", latent), strict=True)]
            mean = sum(both) / 5
            spread = sqrt(sum((x - mean) ** 2 for x in both) / 5 + 1e-5)
            affine = zip(both, weights["norm.weight"].tolist(), weights["norm.bias"].tolist(), strict=True)
            vectors.append([(x - mean) / spread * gain + bias for x, gain, bias in affine])
        size = sqrt(sum(x * x for vector in vectors for x in vector) / 10)
        wanted = torch.tensor(vectors, dtype=torch.float64) * (0.03 / size) * (1.7 if learned else 1.0)
        torch.testing.assert_close(found[row], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_example_is_calibrated_by_itself(dtype: torch.dtype):
    sizes = torch.tensor([1e-3, 1.0, 50.0, 1e4], dtype=torch.float64)
    prefix = (normal(4, 6, 5) * sizes[:, None, None]).to(dtype)
    found = calibrate(prefix, 0.0106)
    assert found.dtype == dtype
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(rms_of(found.double()), torch.full((4,), 0.0106).double(), rtol=tolerance, atol=0)
    torch.testing.assert_close(found[1], calibrate(prefix[1:2], 0.0106)[0])
    # Directions, and lengths relative to one another, stay.
    ratios = found.double() / prefix.double()
    torch.testing.assert_close(ratios, ratios[:, :1, :1].expand_as(ratios), rtol=tolerance, atol=0)


def test_a_prefix_of_zeros_stays_one_and_has_a_gradient():
    zeros = torch.zeros(2, 3, 4, requires_grad=True)
    found = calibrate(zeros, 0.02)
    found.sum().backward()
    assert (found == 0).all() and zeros.grad is not None and zeros.grad.isfinite().all()


def test_calibration_undoes_a_scale_before_it():
    """Why the learned factor comes after: before, it would have no gradient."""
    latents, before = normal(2, 3, 4), torch.ones((), dtype=torch.float64, requires_grad=True)
    weight = normal(2, 3, 4, seed=1)
    (gradient,) = torch.autograd.grad((calibrate(latents * before, 0.03) * weight).sum(), before)
    assert abs(float(gradient)) < 1e-9
    made = adapter()
    assert made.scale is not None
    (gradient,) = torch.autograd.grad((made(latents) * normal(2, 3, 5)).sum(), made.scale)
    assert abs(float(gradient)) > 1e-3


def test_the_scale_says_how_many_times_the_tables_rms():
    made = adapter()
    assert made.scale is not None
    torch.testing.assert_close(rms_of(made(normal(3, 2, 4))), torch.full((3,), 0.03).double(), rtol=1e-6, atol=0)
    with torch.no_grad():
        made.scale.fill_(2.5)
    torch.testing.assert_close(rms_of(made(normal(3, 2, 4))), torch.full((3,), 0.075).double(), rtol=1e-6, atol=0)
    assert adapter(learned_scale=False).scale is None
    assert Adapter(AdapterSpec(), 4, 5, rms=0.03).mlp[0].weight.shape == (5, 4)  # pyright: ignore


def test_gradients_are_finite_differences():
    made, latents = adapter(), normal(2, 2, 4).requires_grad_()
    names = [name for name, _ in made.named_parameters()]
    weights = [parameter.detach().clone().requires_grad_() for parameter in made.parameters()]

    def run(latents: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, weights, strict=True)), (latents,)) * 100

    assert torch.autograd.gradcheck(run, (latents, *weights))
    assert torch.autograd.gradcheck(lambda prefix: calibrate(prefix, 2.0), (latents,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_in_every_precision(dtype: torch.dtype):
    made = Adapter(AdapterSpec(), 4, 6, rms=0.0106).to(dtype)
    assert made.rms == 0.0106
    found = made(normal(3, 2, 4).float())
    assert found.dtype == dtype and found.shape == (3, 2, 6)
    found.float().square().sum().backward()
    made.zero_grad()
    (made(normal(3, 2, 4)) * normal(3, 2, 6, seed=2).to(dtype)).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name


def test_the_same_seed_is_the_same_adapter():
    first, same, other = (Adapter(AdapterSpec(), 4, 6, rms=1.0, seed=seed) for seed in (0, 0, 1))
    latents = normal(1, 2, 4)
    assert torch.equal(first(latents), same(latents)) and not torch.allclose(first(latents), other(latents))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_the_rms_of_a_table(name: str, rows: int):
    backbone = tiny(name)
    table = backbone.model.get_input_embeddings().weight.detach().double()
    assert embedding_rms(backbone, rows=rows) == pytest.approx(float(table.square().mean().sqrt()), rel=1e-6)


@pytest.mark.parametrize("number", [0.0, float("nan"), float("inf")])
def test_a_table_that_cannot_be_calibrated_to(number: float):
    backbone = tiny()
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight.fill_(number)
    with pytest.raises(StepwellError, match="to which no prefix can be calibrated"):
        embedding_rms(backbone)
    with pytest.raises(StepwellError, match="to which no prefix can be calibrated"):
        Adapter(AdapterSpec(), 4, 6, rms=number)
