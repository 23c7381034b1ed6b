"""What of vLLM is used, as its documentation has it, around a model of transformers: one row at a time, no cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from stepwell.backbone import HFBackbone
from stepwell.shapes import Precision

Release = Literal["newest", "0.9", "without"]
PRECISIONS: dict[str, Precision] = {"float32": "fp32", "bfloat16": "bf16"}


class FakeVLLM:
    """Stands for the module `vllm`.

    Args:
        model: that every engine runs, whatever folder it is given; None = the folder's.
        most: max_model_len.
        release: `newest` looks for a stop token before the limit, and leaves it in; `0.9` looks at the limit first;
            `without` leaves the stop token out, as the documentation has it of special tokens.
        broken: raised where the engine is started.
        dies: raised where it is asked.
    """

    def __init__(
        self, model: Any = None, *, most: int = 720, release: Release = "newest", broken: Exception | None = None,
        dies: Exception | None = None,
    ) -> None:  # fmt: skip
        self.model, self.most, self.release, self.broken, self.dies = model, most, release, broken, dies
        self.started: list[dict[str, Any]] = []
        self.given: list[Tensor] = []

    def LLM(self, *, model: str, dtype: str, seed: int, **options: Any) -> Any:
        self.started.append({"model": model, "dtype": dtype, "seed": seed, **options})
        if self.broken is not None:
            raise self.broken
        if self.model is None:
            self.model = HFBackbone.load(Path(model), precision=PRECISIONS[dtype], device="cpu").model
        config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=self.most))
        return SimpleNamespace(llm_engine=config, generate=self.generate)

    def SamplingParams(
        self, *, temperature: float, top_p: float, max_tokens: int, stop_token_ids: list[int], ignore_eos: bool,
        detokenize: bool, seed: int | None,
    ) -> Any:  # fmt: skip
        assert temperature == 0 and top_p == 1 and max_tokens >= 1 and ignore_eos and not detokenize and seed is None
        return SimpleNamespace(max_tokens=max_tokens, stop_token_ids=stop_token_ids)

    def generate(self, prompts: Sequence[dict[str, Any]], params: Sequence[Any], *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm and len(prompts) == len(params)
        if self.dies is not None:
            raise self.dies
        return [
            SimpleNamespace(outputs=[self._continued(prompt, one)]) for prompt, one in zip(prompts, params, strict=True)
        ]

    @torch.no_grad()
    def _continued(self, prompt: dict[str, Any], params: Any) -> Any:
        (kind,) = prompt
        assert kind == "prompt_embeds"
        row = prompt[kind]
        assert row.dim() == 2 and row.device.type == "cpu" and not row.requires_grad
        assert len(row) + params.max_tokens <= self.most
        self.given.append(row)
        ids: list[int] = []
        while True:
            ids.append(int(self.model(inputs_embeds=row[None]).logits[0, -1].argmax()))
            row = torch.cat((row, self.model.get_input_embeddings()(torch.tensor(ids[-1:]))))
            ended, full = ids[-1] in params.stop_token_ids, len(ids) == params.max_tokens
            if ended or full:
                break
        reason = "length" if full and (self.release == "0.9" or not ended) else "stop"
        return SimpleNamespace(token_ids=ids[:-1] if ended and self.release == "without" else ids, finish_reason=reason)
