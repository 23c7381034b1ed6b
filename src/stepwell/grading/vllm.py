"""vLLM behind the seam of `stepwell.grading.decoding`, where it is asked for and to be had; else our own decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.grading.decoding import OwnWriter, Writer, Written, as_written
from stepwell.grading.protocol import Decoding
from stepwell.sft.render import ChatFormat


@dataclass(frozen=True, kw_only=True)
class VLLMWriter:
    """vLLM's decoding of a model folder, behind the same seam; build one with `of`.

    Its kernels round otherwise than ours, so an answer may differ where two tokens are nearly as likely; `name` tells
    in the record which of the two wrote.
    """

    engine: Any
    sampling: Any
    form: ChatFormat
    most: int
    name: str = "vllm"

    @classmethod
    def of(cls, folder: Path, form: ChatFormat, decoding: Decoding) -> VLLMWriter:
        """A model behind vLLM. Raises StepwellError where vLLM is not installed or cannot run the model here."""
        try:
            vllm = import_module("vllm")
        except ImportError:
            raise StepwellError(
                "the package vllm is not installed", "pip install vllm on a machine with a GPU, or decode without it"
            ) from None
        try:
            engine = vllm.LLM(
                model=str(folder), dtype={"fp32": "float32", "bf16": "bfloat16"}[decoding.precision],
                enforce_eager=False, seed=decoding.seed,
            )  # fmt: skip
            most = int(engine.llm_engine.model_config.max_model_len)
        # Whatever goes wrong in there (no GPU, an architecture it does not know) has one way out.
        except Exception as error:
            what = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise StepwellError(f"vLLM cannot run this model here: {what}", "decode without it", path=folder) from None
        return cls(engine=engine, sampling=vllm.SamplingParams, form=form, most=most)

    def write(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], decoding: Decoding) -> list[Written]:
        """See `Writer`."""
        rooms = [min(decoding.max_tokens, self.most - len(prompt)) for prompt in prompts]
        places = [i for i, room in enumerate(rooms) if room >= 1]
        params = [
            self.sampling(
                temperature=decoding.temperature, top_p=decoding.top_p, max_tokens=rooms[i], seed=seeds[i],
                stop_token_ids=sorted(self.form.stops), skip_special_tokens=True,
            )
            for i in places
        ]  # fmt: skip
        asked = [{"prompt_token_ids": list(prompts[i])} for i in places]
        found = self.engine.generate(asked, params, use_tqdm=False) if places else []
        out = [Written(text="", stop="no room", tokens=0)] * len(prompts)
        for i, one in zip(places, found, strict=True):
            answer = one.outputs[0]
            ids = tuple(token for token in answer.token_ids if token not in self.form.stops)
            out[i] = as_written(
                self.form, ids, answer.finish_reason == "stop", rooms[i] < decoding.max_tokens, decoding
            )
        return out


def writer(
    folder: Path, form: ChatFormat, decoding: Decoding, own: Callable[[], OwnWriter], *, vllm: bool = False
) -> tuple[Writer, str]:
    """The writer that was asked for, or ours where vLLM is not to be had; and why it is ours then, or "".

    Args:
        folder: of the model, merged: vLLM reads it from there.
        form: its chat format.
        decoding: of the protocol.
        own: builds our own writer; only called where it is wanted.
        vllm: whether vLLM is asked for.
    """
    if not vllm:
        return own(), ""
    try:
        return VLLMWriter.of(folder, form, decoding), ""
    except StepwellError as error:
        return own(), error.cause
