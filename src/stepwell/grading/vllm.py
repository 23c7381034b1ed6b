"""vLLM behind the seam of `stepwell.grading.decoding`, where it is asked for and to be had; else our own decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepwell.errors import StepwellError
from stepwell.grading.decoding import OwnWriter, Writer, Written, as_written
from stepwell.grading.protocol import Decoding
from stepwell.sft.render import ChatFormat
from stepwell.vllm_engine import Engine


@dataclass(frozen=True, kw_only=True)
class VLLMWriter:
    """vLLM's decoding of a model folder, behind the same seam; `name` tells in the record which of the two wrote.

    Build one with `of`.
    """

    engine: Engine
    form: ChatFormat
    name: str = "vllm"

    @classmethod
    def of(cls, folder: Path, form: ChatFormat, decoding: Decoding) -> VLLMWriter:
        """A model behind vLLM. Raises as `Engine.start`."""
        return cls(engine=Engine.start(folder, decoding.precision, seed=decoding.seed), form=form)

    def write(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], decoding: Decoding) -> list[Written]:
        """See `Writer`. Raises as `Engine.write`."""
        rooms = [min(decoding.max_tokens, self.engine.most - len(prompt)) for prompt in prompts]
        places = [i for i, room in enumerate(rooms) if room >= 1]
        found = self.engine.write(
            [{"prompt_token_ids": list(prompts[i])} for i in places], limits=[rooms[i] for i in places],
            stop=self.form.stops, temperature=decoding.temperature, top_p=decoding.top_p,
            seeds=[seeds[i] for i in places],
        )  # fmt: skip
        out = [Written(text="", stop="no room", tokens=0)] * len(prompts)
        for i, one in zip(places, found, strict=True):
            out[i] = as_written(self.form, one.ids, one.stopped, rooms[i] < decoding.max_tokens, decoding)
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
