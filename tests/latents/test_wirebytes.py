"""Quantisation and bytes: against plain arithmetic, and against real payloads that are packed and read back."""

from __future__ import annotations

import struct

import pytest
import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.latents.wirebytes import bytes_on_wire, packed, quantise_latents, text_bytes, unpacked, utf8

ALL_BITS = (32, 16, 8, 4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bf16(x: float) -> float:
    """The nearest number of 8 significant bits, ties to even."""
    (whole,) = struct.unpack("<I", struct.pack("<f", x))
    whole += 0x7FFF + ((whole >> 16) & 1)
    return struct.unpack("<f", struct.pack("<I", (whole >> 16) << 16))[0]


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_their_arithmetic(bits: int):
    latents, most = normal(3, 4, 7), 2 ** (bits - 1) - 1
    found = quantise_latents(latents, bits)
    for vector, got in zip(latents.flatten(0, 1), found.flatten(0, 1), strict=True):
        scale = bf16(float(vector.abs().max()) / most)
        for x, y in zip(vector.tolist(), got.tolist(), strict=True):
            assert y == pytest.approx(max(-most, min(most, round(x / scale))) * scale, rel=1e-6)
            # Half a step, and at the largest number what rounding the scale to bf16 loses.
            assert abs(x - y) <= scale / 2 + abs(x) * 2**-8


def test_floats_are_their_precision():
    latents = normal(2, 3, 5)
    assert torch.equal(quantise_latents(latents, 32), latents)
    assert torch.equal(quantise_latents(latents, 16), latents.half().float())


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize(("vectors", "width"), [(1, 1), (1, 5), (3, 5), (4, 16), (16, 256)])
def test_the_bytes_are_those_of_a_real_payload(bits: int, vectors: int, width: int):
    latents = normal(2, vectors, width, seed=width)
    received = quantise_latents(latents, bits)
    for row in range(2):
        payload = packed(latents[row], bits)
        assert len(payload) == bytes_on_wire(vectors, width, bits)
        assert torch.equal(unpacked(payload, vectors, width, bits), received[row])


def test_known_sizes():
    assert bytes_on_wire(16, 256, 16) == 8192  # the recorded result: 6.5 times its text
    assert bytes_on_wire(16, 256, 32) == 16384
    assert bytes_on_wire(16, 256, 8) == 4096 + 32
    assert bytes_on_wire(16, 256, 4) == 2048 + 32
    assert bytes_on_wire(1, 5, 4) == 3 + 2
    assert text_bytes("Zoë 😀") == 9 == len(utf8("Zoë 😀"))
    assert text_bytes("\ud83d") == 3


@pytest.mark.parametrize("bits", ALL_BITS)
def test_quantising_twice_changes_nothing_more(bits: int):
    once = quantise_latents(normal(3, 4, 9), bits)
    torch.testing.assert_close(quantise_latents(once, bits), once, rtol=2**-7 if bits < 16 else 0, atol=0)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_latents_keep_their_precision_and_rows_their_own_scale(bits: int, dtype: torch.dtype):
    latents = normal(2, 3, 8).to(dtype)
    found = quantise_latents(latents, bits)
    assert found.dtype == dtype and found.shape == latents.shape
    assert torch.equal(found[1:], quantise_latents(latents[1:], bits))
    assert torch.equal(found[:, :2], quantise_latents(latents[:, :2], bits))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_sizes_do_not_matter(bits: int, size: float):
    latents = normal(2, 3, 8)
    torch.testing.assert_close(quantise_latents(latents * size, bits) / size, quantise_latents(latents, bits),
                               rtol=0.01, atol=0.3 if bits == 4 else 0.03)  # fmt: skip


@pytest.mark.parametrize("bits", ALL_BITS)
def test_zeros_stay_zeros(bits: int):
    latents = torch.zeros(1, 2, 5)
    latents[0, 1] = 3.0
    found = quantise_latents(latents, bits)
    assert (found[0, 0] == 0).all()
    torch.testing.assert_close(found[0, 1], latents[0, 1], rtol=0.01, atol=0)
    assert torch.equal(unpacked(packed(latents[0], bits), 2, 5, bits), found[0])
    assert quantise_latents(torch.zeros(0, 2, 5), bits).shape == (0, 2, 5)


@pytest.mark.parametrize("bits", [0, 1, 2, 5, 64, -8])
def test_bits_that_are_not_known(bits: int):
    for run in (lambda: bytes_on_wire(1, 1, bits), lambda: quantise_latents(normal(1, 1, 1), bits)):
        with pytest.raises(StepwellError, match=f"latents of {bits} bits are not known") as caught:
            run()
        assert caught.value.way_out == "choose 32, 16, 8 or 4 bits a number"


@pytest.mark.parametrize(("number", "bits"), [(float("nan"), 8), (float("inf"), 32), (1e5, 16), (-1e5, 16)])
def test_latents_that_cannot_be_sent(number: float, bits: int):
    latents = normal(2, 3, 4)
    latents[1, 2, 3] = number
    with pytest.raises(StepwellError, match=f"cannot be sent at {bits} bits"):
        quantise_latents(latents, bits)
    with pytest.raises(StepwellError, match=f"cannot be sent at {bits} bits"):
        packed(latents[1], bits)
    assert quantise_latents(latents[:1], bits).isfinite().all()


def test_a_payload_of_another_size_is_refused():
    payload = packed(normal(3, 4), 8)
    with pytest.raises(StepwellError, match="18 bytes came for 4 x 4 latents of 8 bits, which are 24"):
        unpacked(payload, 4, 4, 8)
