"""vLLM, where it is to be had: imported, started and asked here and nowhere else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from stepwell.decode import Decoded
from stepwell.errors import StepwellError
from stepwell.shapes import Precision

DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16"}
BESIDE = 0.5
"""Of the GPU's memory, what vLLM takes where a model of ours is there too: each has the same weights."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model folder behind vLLM; build one with `start`.

    Its kernels round otherwise than ours, so that a token may differ where two are nearly as likely.

    Attributes:
        llm: `vllm.LLM`.
        sampling: `vllm.SamplingParams`.
        most: columns it knows, the last written one among them.
    """

    llm: Any
    sampling: Any
    most: int

    @classmethod
    def start(cls, folder: Path, precision: Precision, *, seed: int = 0, embeds: bool = False) -> Engine:
        """Have vLLM load a model.

        Args:
            folder: of the model, with its configuration and tokenizer.
            precision: of weights and computation; vLLM has no fp64.
            seed: of the engine; what is drawn for a prompt depends on the prompt's own.
            embeds: whether prompts may be embeddings. A model of ours then stands beside it, and made them.

        Raises:
            StepwellError: vLLM is not installed, or cannot run the model here.
        """
        try:
            vllm = import_module("vllm")
        except ImportError:
            raise StepwellError(
                "the package vllm is not installed", "pip install vllm on a machine with a GPU, or decode without it"
            ) from None
        if precision not in DTYPES:
            raise StepwellError(f"vLLM cannot run this model here: it has no {precision}", "decode without it")
        options = {"enable_prompt_embeds": True, "gpu_memory_utilization": BESIDE} if embeds else {}
        try:
            llm = vllm.LLM(model=str(folder), dtype=DTYPES[precision], seed=seed, **options)
            most = int(llm.llm_engine.model_config.max_model_len)
        # Whatever goes wrong in there (no GPU, an architecture it does not know) has one way out.
        except Exception as error:
            raise _refused("vLLM cannot run this model here", error, folder) from None
        return cls(llm=llm, sampling=vllm.SamplingParams, most=most)

    def write(
        self, prompts: Sequence[Mapping[str, Any]], *, limits: Sequence[int], stop: Collection[int],
        temperature: float = 0.0, top_p: float = 1.0, seeds: Sequence[int] | None = None,
    ) -> list[Decoded]:  # fmt: skip
        """Continue prompts.

        Args:
            prompts: each `{"prompt_token_ids": [...]}` or `{"prompt_embeds": (T, D) on the CPU}`, without padding.
            limits: new tokens at most, for each prompt 1 or more; with the prompt's columns `most` at most.
            stop: ids that end an answer, and no others do.
            temperature: 0 = greedy.
            top_p: as of `stepwell.decode.Sampling`.
            seeds: one a prompt, where something is drawn.

        Raises:
            StepwellError: vLLM failed.
        """
        ends = sorted(stop)
        params = [
            # The model's own end tokens are among `stop` where they are meant to end an answer.
            self.sampling(
                temperature=temperature, top_p=top_p, max_tokens=limit, stop_token_ids=ends, ignore_eos=True,
                detokenize=False, seed=None if seeds is None else seeds[place],
            )
            for place, limit in enumerate(limits)
        ]  # fmt: skip
        if not params:
            return []
        try:
            found = self.llm.generate(list(prompts), params, use_tqdm=False)
        except Exception as error:
            raise _refused("vLLM failed while it wrote", error) from None
        return [_decoded(one.outputs[0], frozenset(ends)) for one in found]


def _decoded(answer: Any, stop: frozenset[int]) -> Decoded:
    """One answer without its stop token, which vLLM leaves in or not, by release and whether it is a special token."""
    ids = tuple(answer.token_ids)
    # Releases up to 0.9 look at the limit first: a stop token in the last place is then called "length".
    ended = ids[-1:] != () and ids[-1] in stop
    return Decoded(ids=ids[:-1] if ended else ids, stopped=ended or answer.finish_reason == "stop")


def _refused(what: str, error: Exception, path: Path | None = None) -> StepwellError:
    why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return StepwellError(f"{what}: {why}", "decode without it", path=path)
