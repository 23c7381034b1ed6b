"""Asking a model on this machine, in batches, and keeping every answer as `stepwell.chat` says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stepwell.chat import Answer, Attempt, Attempts, Check, Message, fault, next_try, unusable
from stepwell.errors import StepwellError
from stepwell.fingerprint import of_folder
from stepwell.models import locate
from stepwell.spec import ModelName, Spec

if TYPE_CHECKING:
    from stepwell.backbone import HFBackbone
    from stepwell.decode import Decoded


class LocalModel(Spec):
    """A causal LM on this machine that is asked greedily, through its chat template where it has one.

    Attributes:
        model: folder, pulled name or hub id.
        precision: of weights and computation.
        max_tokens: length of an answer at most, in tokens.
        retries: times an answer is asked for again that cannot be used.
        batch_size: conversations at a time.
    """

    model: ModelName
    precision: Literal["fp32", "bf16"] = "fp32"
    max_tokens: int = Field(default=512, ge=1)
    retries: int = Field(default=1, ge=0)
    batch_size: int = Field(default=16, ge=1)


class LocalChat:
    """Asks one local model; it is only loaded where something has to be asked.

    Args:
        local: which model, and how it is asked.
        cache: the folder in which answers are kept, by the content of the model's folder and the conversation.
        device: auto, cpu, cuda, cuda:N or mps.
        between: called before each batch, such as a stage's `stop_if_asked`.
    """

    def __init__(
        self, local: LocalModel, cache: Path, *, device: str = "auto", between: Callable[[], None] | None = None
    ) -> None:
        self.local, self.device, self.between = local, device, between
        self.kept = Attempts(cache)

    def ask_all(self, conversations: Sequence[Sequence[Message]], checks: Sequence[Check]) -> list[Answer]:
        """The answers to conversations, each with its own check, in their order; see `stepwell.endpoint.Client.ask`.

        Raises:
            StepwellError: the model cannot be loaded, or has no tokenizer.
        """
        answers: dict[int, Answer] = {}
        last: dict[int, Attempt] = {}
        whys = dict.fromkeys(range(len(conversations)), "")
        for number in range(self.local.retries + 1):
            waiting = [place for place in whys if place not in answers]
            tried = self._tried(waiting, conversations, whys, number)
            for place in waiting:
                attempt = tried[place]
                if isinstance(attempt, Answer):
                    answers[place] = attempt
                    continue
                last[place] = attempt
                whys[place] = fault(attempt, checks[place], self.local.max_tokens)
                if not whys[place]:
                    answers[place] = Answer(text=attempt.text, cut=attempt.cut)
        tries = self.local.retries + 1
        return [answers.get(place) or unusable(tries, last[place], why) for place, why in whys.items()]

    def _tried(
        self, waiting: list[int], conversations: Sequence[Sequence[Message]], whys: dict[int, str], number: int
    ) -> dict[int, Attempt | Answer]:
        """The attempt of that number for each place that waits, kept or new; an Answer where none can be made."""
        requests = {place: self._request(conversations[place]) for place in waiting}
        before = {place: self.kept.read(requests[place]) for place in waiting}
        tried: dict[int, Attempt | Answer] = {p: kept[number] for p, kept in before.items() if len(kept) > number}
        asked: dict[int, list[int]] = {}
        for place in (place for place in waiting if place not in tried):
            prompt = self._prompt(next_try(conversations[place], before[place], whys[place]))
            if self._room(prompt) < 1:
                why = f"the prompt of {len(prompt)} tokens leaves no room: the model knows {self._most()} positions"
                tried[place] = Answer(text=None, why=why, cut=True)
            else:
                asked[place] = prompt
        places = list(asked)
        for start in range(0, len(places), self.local.batch_size):
            if self.between:
                self.between()
            batch = places[start : start + self.local.batch_size]
            for place, found in zip(batch, self._written([asked[place] for place in batch]), strict=True):
                text = self._tokenizer.decode(list(found.ids), skip_special_tokens=True)
                attempt = Attempt(text=text, cut=not found.stopped)
                self.kept.write(requests[place], [*before[place], attempt])
                tried[place] = attempt
        return tried

    def _request(self, messages: Sequence[Message]) -> dict[str, Any]:
        return {
            "model": self._content, "precision": self.local.precision, "max_tokens": self.local.max_tokens,
            "messages": list(messages),
        }  # fmt: skip

    @cached_property
    def _folder(self) -> Path:
        return locate(self.local.model)

    @cached_property
    def _content(self) -> str:
        return of_folder(self._folder)

    @cached_property
    def _backbone(self) -> HFBackbone:
        from stepwell.backbone import HFBackbone

        loaded = HFBackbone.load(self._folder, precision=self.local.precision, device=self.device)
        if loaded.tokenizer is None:
            raise StepwellError("the model has no tokenizer", "name a model with its tokenizer", path=self._folder)
        return loaded

    @property
    def _tokenizer(self) -> Any:
        return self._backbone.tokenizer

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            # The template writes the special tokens itself, a first one included.
            return self._tokenizer.encode(text, add_special_tokens=False)
        return self._tokenizer.encode("\n\n".join(message["content"] for message in messages) + "\n\n")

    def _most(self) -> int | None:
        return self._backbone.max_positions

    def _room(self, prompt: Sequence[int]) -> int:
        """Tokens that can be written after a prompt. The last one is never read, and needs no position."""
        most = self._most()
        return self.local.max_tokens if most is None else min(self.local.max_tokens, most - len(prompt) + 1)

    def _written(self, prompts: Sequence[Sequence[int]]) -> list[Decoded]:
        from stepwell.decode import greedy_prompts

        limits = [self._room(prompt) for prompt in prompts]
        return greedy_prompts(self._backbone, prompts, stop=self._stops, limit=limits, batch_size=len(prompts))

    @cached_property
    def _stops(self) -> frozenset[int]:
        # A chat model may end its turn with another token than its texts: generation_config names them all.
        config = getattr(self._backbone.model, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        named = ends if isinstance(ends, list) else [ends]
        return frozenset(end for end in [*named, self._tokenizer.eos_token_id] if end is not None)
