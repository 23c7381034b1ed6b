"""What latents cost on the wire, and what is left of them there: quantisation to 16, 8 or 4 bits, scales counted.

At 32 and 16 bits the numbers are floats (fp32, fp16). At 8 and 4 bits each vector has a scale of two bytes (bf16, whose
range is that of fp32), and its numbers are integers in [-127, 127] or [-7, 7]: symmetric absmax quantisation, a vector
at a time. A text costs the bytes of its UTF-8.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.errors import StepwellError

Bits = Literal[32, 16, 8, 4]
SCALE_BYTES = 2
FLOATS = {32: torch.float32, 16: torch.float16}


def utf8(text: str) -> bytes:
    """The bytes of a text; half a surrogate pair, which JSON may hold, is written as it stands."""
    return text.encode("utf-8", "surrogatepass")


def text_bytes(text: str) -> int:
    """Bytes of a text on the wire."""
    return len(utf8(text))


def bytes_on_wire(vectors: int, width: int, bits: int) -> int:
    """Bytes of M x d_z latents: the numbers, and at 8 and 4 bits a scale of two bytes for each vector.

    Raises:
        StepwellError: bits other than 32, 16, 8 and 4.
    """
    _check_bits(bits)
    return (vectors * width * bits + 7) // 8 + (0 if bits in FLOATS else SCALE_BYTES * vectors)


@torch.no_grad()
def quantise_latents(latents: Float[Tensor, "*rows d_z"], bits: int) -> Float[Tensor, "*rows d_z"]:
    """The latents as the receiver has them, in their own precision; exactly what `unpacked(packed(...))` gives.

    Raises:
        StepwellError: bits other than 32, 16, 8 and 4; latents that are not finite, or beyond fp16 at 16 bits.
    """
    _check_bits(bits)
    _check_range(latents, bits)
    if bits in FLOATS:
        return latents.to(FLOATS[bits]).to(latents.dtype)
    integers, scales = _integers(latents, bits)
    return (integers.float() * scales.float()).to(latents.dtype)


def packed(latents: Float[Tensor, "M d_z"], bits: int) -> bytes:
    """One example's latents as they go over the wire: `bytes_on_wire(M, d_z, bits)` bytes, little-endian.

    Raises:
        StepwellError: as `quantise_latents`.
    """
    _check_bits(bits)
    _check_range(latents, bits)
    latents = latents.detach().cpu()
    if bits in FLOATS:
        return _bytes(latents.to(FLOATS[bits]))
    integers, scales = _integers(latents, bits)
    numbers = integers.flatten().to(torch.int8)
    if bits == 4:
        numbers = torch.nn.functional.pad(numbers, (0, numbers.numel() % 2)).view(-1, 2) & 15
        numbers = numbers[:, 0] | numbers[:, 1] << 4
    return _bytes(scales) + _bytes(numbers)


def unpacked(data: bytes, vectors: int, width: int, bits: int) -> Float[Tensor, "M d_z"]:
    """The latents (fp32) that `packed` wrote.

    Raises:
        StepwellError: data of another length than these latents have.
    """
    if len(data) != bytes_on_wire(vectors, width, bits):
        raise StepwellError(
            f"{len(data)} bytes came for {vectors} x {width} latents of {bits} bits, "
            f"which are {bytes_on_wire(vectors, width, bits)}",
            "read them with the numbers they were packed with",
        )
    held = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if bits in FLOATS:
        return held.view(FLOATS[bits]).view(vectors, width).float()
    scales = held[: SCALE_BYTES * vectors].view(torch.bfloat16)[:, None]
    numbers = held[SCALE_BYTES * vectors :].view(torch.int8)
    if bits == 4:
        # Shifts of signed bytes keep the sign, so each half is moved to the top and back.
        numbers = torch.stack((numbers << 4 >> 4, numbers >> 4), -1).flatten()[: vectors * width]
    return numbers.view(vectors, width).float() * scales.float()


def _integers(latents: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers (..., d_z) and scales (..., 1) in bf16; a vector of zeros has the scale 0."""
    most = 2 ** (bits - 1) - 1
    exact = latents.float()
    scales = (exact.abs().amax(-1, keepdim=True) / most).to(torch.bfloat16)
    # The rounded scale divides, for it is the one that the receiver multiplies by. Clamping is for what it falls short.
    divisors = torch.where(scales == 0, 1.0, scales.float())
    return (exact / divisors).round().clamp(-most, most), scales


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _check_bits(bits: int) -> None:
    if bits not in get_args(Bits):
        raise StepwellError(f"latents of {bits} bits are not known", "choose 32, 16, 8 or 4 bits a number")


def _check_range(latents: Tensor, bits: int) -> None:
    most = float(latents.detach().abs().max()) if latents.numel() else 0.0
    if not most <= torch.finfo(FLOATS.get(bits, torch.float32)).max:
        raise StepwellError(
            f"a latent of {most:.3g} cannot be sent at {bits} bits", "look at the training: latents should be finite"
        )
