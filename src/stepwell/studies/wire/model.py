"""What turns items into prefixes: encoder, adapter or deep prefix, and the LoRAs that read and speak."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stepwell.adapt.artifact import load_artifact, read_about, save_artifact
from stepwell.adapt.frozen import weights_sha256
from stepwell.adapt.lora import LoRA, LoraParams
from stepwell.answers import Asked
from stepwell.latents.adapter import Adapter, embedding_rms
from stepwell.latents.contract import Contract, same_contract
from stepwell.latents.deep_prefix import DeepPrefix, KeyValues, begin
from stepwell.latents.encoder import build_encoder
from stepwell.latents.encoders.bytewise import sinusoids
from stepwell.latents.encoders.pooling import Attention, mlp, seeded
from stepwell.studies.wire.params import Arm
from stepwell.tasks.base import QA

FOLDER = "wire"
"""Of the artifact, in a job's folder."""
RESTORING = 256
"""Width in which prompts are restored from latents."""

Prefix = Tensor | KeyValues
"""What stands in a prompt's place: vectors (B, M, D), or keys and values of every layer."""


class Wire:
    """A frozen language model and everything trained around it; `parts` is what a checkpoint and an artifact hold.

    Args:
        contract: of the language model, which is frozen here.
        arm: encoder and adapter.
        vectors: the M that the encoder serves.
        lora: of the language model when it answers; None in stage A.
        texts: tokens of some real prompts, on which a deep prefix is measured.
        restoring: whether prompts are restored from latents, for the loss `reconstruction`.
        seed: of the weights.

    Attributes:
        encoder, adapter, deep: as the arm says.
        reader: LoRA that is on while an `lm` encoder reads.
        speaker: LoRA that is on while the model answers.
        restorer: latents to embeddings, used by the loss alone.
    """

    def __init__(
        self, contract: Contract, arm: Arm, vectors: Sequence[int], *, lora: LoraParams | None = None,
        texts: Sequence[Sequence[int]] = (), restoring: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        self.contract, self.arm, self.vectors, self.lora = contract, arm, tuple(vectors), lora
        self.backbone = backbone = contract.backbone
        backbone.requires_grad_(False).eval()
        device = next(backbone.parameters()).device
        spec = arm.encoder.model_copy(update={"vectors": self.vectors})
        self.deep = None
        if arm.deep is not None:
            self.deep = DeepPrefix(arm.deep, spec.width, backbone, texts, seed=seed + 1).to(device)
        self.reader = None if arm.reader is None else LoRA(backbone, arm.reader, name="reader", seed=seed + 2)
        self.speaker = None
        if lora is not None:
            self.speak(lora, seed=seed)
        self.encoder = build_encoder(
            spec, seed=seed, backbone=backbone, reading=self.reading, trained=self.reader is not None,
            device=str(device),
        )  # fmt: skip
        self.adapter = None
        if arm.adapter is not None:
            rms = embedding_rms(backbone)
            self.adapter = Adapter(arm.adapter, spec.width, backbone.width, rms=rms, seed=seed + 1).to(device)
        self.restorer = None
        self.restore_prompts(restoring, seed=seed)

    def speak(self, lora: LoraParams, *, seed: int) -> None:
        """Put a new LoRA on the language model, for when it answers; it changes nothing before it is trained."""
        self.lora, self.speaker = lora, LoRA(self.backbone, lora, name="speaker", seed=seed + 3)

    def restore_prompts(self, wanted: bool, *, seed: int) -> None:
        """Have a restorer, a new one where there is none, or have none."""
        if not wanted:
            self.restorer = None
        elif self.restorer is None:
            rms, device = embedding_rms(self.backbone), next(self.backbone.parameters()).device
            self.restorer = Restorer(self.encoder.width, self.backbone.width, rms, seed=seed + 4).to(device)

    def parts(self) -> dict[str, nn.Module]:
        """Name -> what is trained and saved."""
        named = {
            "encoder": self.encoder, "adapter": self.adapter, "deep": self.deep, "reader": self.reader,
            "speaker": self.speaker, "restorer": self.restorer,
        }  # fmt: skip
        return {name: part for name, part in named.items() if part is not None}

    def train(self, mode: bool = True) -> None:
        """Put the parts into training mode or out of it; the frozen model never is."""
        self.backbone.eval()
        for part in self.parts().values():
            part.train(mode)

    @contextmanager
    def still(self) -> Iterator[None]:
        """In the block all parts are in evaluation mode; then they are back in training mode."""
        self.train(False)
        try:
            yield
        finally:
            self.train()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """In the block the model reads for the encoder: with the reader's LoRA, never with the speaker's."""
        other = self.speaker.off() if self.speaker is not None else nullcontext()
        with self.reader.on() if self.reader is not None else other:
            yield

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """In the block the model answers: with the speaker's LoRA where there is one, never with the reader's."""
        other = self.reader.off() if self.reader is not None else nullcontext()
        with self.speaker.on() if self.speaker is not None else other:
            yield

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """In the block the model is what it was: no LoRA, no gradient. What it says never changes."""
        lora = self.speaker or self.reader
        with lora.teacher(adapted=False) if lora is not None else torch.no_grad():
            yield

    def latents(self, items: Sequence[QA], vectors: int | None = None) -> Tensor:
        """(B, M, d_z). Only context and question are read; a context that is too long loses its end."""
        return self.encoder([self.encoder.prompt(item.context or "", item.question) for item in items], vectors)

    def prefix(self, latents: Tensor) -> Prefix:
        """What stands in the prompts' place."""
        made = self.adapter if self.adapter is not None else self.deep
        assert made is not None
        return made(latents)

    def asked(self, prefix: Prefix, contract: Contract | None = None) -> Asked:
        """BOS, prefix and anchor, of the contract that is trained for or of another one. Call it in `speaking`."""
        contract = self.contract if contract is None else contract
        if isinstance(prefix, Tensor):
            return Asked.of_prefix(contract, prefix)
        backbone, rows = self.backbone, len(prefix[0][0])
        device = next(backbone.parameters()).device

        def known(ids: Sequence[int]) -> Tensor:
            embeds = backbone.embed(torch.tensor([ids], dtype=torch.long, device=device))
            return embeds.expand(rows, -1, -1)

        begun, anchor = begin(backbone, prefix, known(contract.bos)), known(contract.anchor)
        here = torch.arange(anchor.shape[1], device=device)
        mask = torch.cat((begun.mask, begun.mask.new_ones(anchor.shape[:2])), 1)
        return Asked(embeds=anchor, mask=mask, positions=begun.positions[:, None] + here, cache=begun.cache)

    @property
    def scale(self) -> float | None:
        """The learned factor on the calibrated prefix; of a deep one the mean over layers. None without one."""
        found = self.deep.scale if self.deep is not None else self.adapter.scale if self.adapter is not None else None
        return None if found is None else float(found.detach().mean())

    # As one artifact.

    def save(self, folder: Path, **about: Any) -> None:
        """Write all parts as one artifact, with what is needed to build them again."""
        known = {
            "arm": self.arm.model_dump(mode="json"), "vectors": list(self.vectors),
            "restoring": self.restorer is not None,
            "lora": None if self.lora is None else self.lora.model_dump(mode="json"),
            "contract": self.contract.parts(),
        }  # fmt: skip
        base = weights_sha256(self.backbone)
        save_artifact(folder, self.parts(), base=base, about={**known, **about})

    @classmethod
    def load(cls, contract: Contract, folder: Path, *, texts: Sequence[Sequence[int]] = ()) -> Wire:
        """All parts of an artifact around the model they were trained on.

        Raises:
            StepwellError: another contract or model, or an artifact that is not whole.
        """
        about = read_about(folder)
        same_contract(contract, about["contract"])
        lora = None if about["lora"] is None else LoraParams.model_validate(about["lora"])
        wire = cls(
            contract, Arm.model_validate(about["arm"]), about["vectors"], lora=lora, texts=texts,
            restoring=about["restoring"],
        )  # fmt: skip
        load_artifact(folder, wire.parts(), base=weights_sha256(wire.backbone))
        return wire


def mapped(prefix: Prefix, change: Callable[[Tensor], Tensor]) -> Prefix:
    """The same change to the vectors, or to all keys and values."""
    if isinstance(prefix, Tensor):
        return change(prefix)
    return [(change(key), change(value)) for key, value in prefix]


def states_of(wire: Wire) -> dict[str, Mapping[str, Tensor]]:
    """The weights of all parts, for a checkpoint."""
    return {name: part.state_dict() for name, part in wire.parts().items()}


def restore_states(wire: Wire, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put the weights of a checkpoint back, every one of them."""
    for name, part in wire.parts().items():
        part.load_state_dict(states[name])


class Restorer(nn.Module):
    """Latents (B, M, d_z) to embeddings (B, T, D) of the prompt: each position attends to the latents.

    It serves the loss `reconstruction` and nothing else: what can be restored from latents is in them.

    Args:
        latents_width: d_z.
        width: D.
        rms: of the embedding table, the unit of what comes out.
        seed: of the weights.
    """

    def __init__(self, latents_width: int, width: int, rms: float, *, seed: int = 0) -> None:
        super().__init__()
        self.rms = rms
        with seeded(seed):
            self.attention = Attention(RESTORING, 4, latents_width)
            self.mlp, self.norm = mlp(RESTORING), nn.LayerNorm(RESTORING)
            self.out = nn.Linear(RESTORING, width)

    def forward(self, latents: Tensor, columns: int) -> Tensor:
        """Embeddings of the first `columns` = T tokens."""
        places = sinusoids(columns, RESTORING).to(latents).expand(len(latents), -1, -1)
        found = places + self.attention(places, latents)
        return self.out(self.norm(found + self.mlp(found))) * self.rms
