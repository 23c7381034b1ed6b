"""ONE prompt contract: what stands before an answer, and where the answer ends, for every arm of a study alike.

    text    BOS  template, instruction, context, question            anchor | answer EOS
    latent  BOS  M vectors in place of all of that                   anchor | answer EOS

Training, evaluation, baselines and controls all get their columns here, so that BOS, anchor, template and EOS cannot
differ between them; what was derived from model and plan is printed (`shown`) and compared (`same_contract`). A prompt
that is too long loses the end of its CONTEXT; the question, which follows it, always stays whole.

The parts of a prompt are tokenised one by one and joined, so that cutting one leaves the tokens of the others as they
are. The joints lie where a word begins or a line ends, where the tokenizers of GPT-2, Llama 3 and Qwen cut anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.fingerprint import canonical, fingerprint
from stepwell.latents.contract_specs import ContractParams
from stepwell.latents.template import Frame, chat_frame, encoded, end_tokens, special_tokens
from stepwell.tasks.base import QA
from stepwell.tasks.qa_scores import squad_form

UNLIMITED = 10**9
PROBE = "Zo\u00eb's 3 caf\u00e9s, in 1984: \u00abyes\u00bb!\n\tEnd"
"""Tells tokenizers apart."""
EXAMPLE = QA(id="example", question="Who baked?", answers=("Ada",), context="Ada baked. Bo ate.")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A text prompt that may send less than the whole item.

    Attributes:
        ids: as `Contract.text` has them: BOS ... anchor.
        tokens: of context and question that are in it. Template and instruction are not counted: both ends know them.
        bytes: the same in UTF-8. Of a character that was cut in half, nothing is counted.
        over: whether the question alone is more than was allowed; it is there all the same, without any context.
    """

    ids: tuple[int, ...]
    tokens: int
    bytes: int
    over: bool


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What the limits cost a set of items, each a number of items.

    Attributes:
        n: items.
        contexts_cut: whose context does not fit.
        answers_lost: of these, whose gold answers are all gone from the context.
        answers_cut: whose first gold answer is longer than `max_answer_tokens`, so that none can be exactly right.
    """

    n: int
    contexts_cut: int
    answers_lost: int
    answers_cut: int


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The contract of one model and one plan; build one with `Contract.of`.

    Attributes:
        backbone: embeds; its tokenizer makes the ids.
        params: as the plan has them.
        bos: what every row begins with: the token, or nothing for a model that has none.
        head: of the template, from BOS to the user's words.
        tail: of the template, after the user's words.
        anchor: right before the answer.
        lead: the blank that an answer begins with; see `of`.
        eos: the end of every answer, supervised like its words.
        stops: tokens that end decoding; `eos` is one of them.
        special: tokens that are no words.
    """

    backbone: Any = field(repr=False, compare=False)
    params: ContractParams
    bos: tuple[int, ...]
    head: tuple[int, ...]
    tail: tuple[int, ...]
    anchor: tuple[int, ...]
    lead: str
    eos: int
    stops: frozenset[int]
    special: frozenset[int] = field(repr=False)

    @classmethod
    def of(cls, backbone: Any, params: ContractParams) -> Contract:
        """The contract of a backbone with a tokenizer.

        EOS is what the chat template ends an answer with, else the tokenizer's end token. A blank at the anchor's end
        goes over to the answer where the tokenizer has words with their blank in one token: after a token of a blank
        alone, such models rarely find a word.

        Raises:
            StepwellError: no tokenizer, chat template, end token or anchor; or limits beyond the model's positions.
        """
        tokenizer = getattr(backbone, "tokenizer", None)
        if tokenizer is None:
            raise StepwellError("the model has no tokenizer, so no prompt can be written", "name one with a tokenizer")
        frame = chat_frame(tokenizer) if params.template == "chat" else Frame(header="Answer: ")
        header = frame.header if params.anchor is None else params.anchor
        eos = frame.eos if frame.eos is not None else tokenizer.eos_token_id
        if eos is None:
            raise StepwellError(
                "the tokenizer has no end token, so that no answer can be taught to stop", "choose a model with one"
            )
        bos, head = getattr(tokenizer, "bos_token_id", None), encoded(tokenizer, frame.before)
        if params.template == "chat":
            # A template writes its BOS itself, or means to have none.
            bos = bos if head[:1] == (bos,) else None
            head = head if bos is None else head[1:]
        bare = header.rstrip(" ")
        joins = len(encoded(tokenizer, " A")) == len(encoded(tokenizer, "A"))
        anchor = encoded(tokenizer, bare if joins and bare else header)
        if not anchor:
            raise StepwellError(
                "there is nothing between prompt and answer", "give an anchor, such as `anchor: 'Answer: '`"
            )
        found = cls(
            backbone=backbone, params=params, bos=() if bos is None else (bos,), head=head,
            tail=encoded(tokenizer, frame.after), anchor=anchor,
            lead=header[len(bare) :] if joins and bare else "", eos=eos,
            stops=frozenset({eos, *end_tokens(backbone)}), special=special_tokens(tokenizer) | {eos},
        )  # fmt: skip
        found._check_positions(params.max_prompt_tokens, f"max_prompt_tokens of {params.max_prompt_tokens}")
        return found

    # What is asked.

    def prompt(self, item: QA, tokens: int | None = None) -> tuple[int, ...]:
        """BOS, template, instruction, context and question, without the anchor.

        Args:
            item: with a question.
            tokens: at most so many; None, or more than `max_prompt_tokens` = that. Only the context is cut.

        Raises:
            StepwellError: even the question does not fit; no question; a special token in one of the texts.
        """
        most = self.params.max_prompt_tokens
        ids, _ = self._prompt(item, most if tokens is None else min(tokens, most))
        return ids

    def text(self, item: QA) -> tuple[int, ...]:
        """What the text baseline reads: prompt and anchor. Raises as `prompt`."""
        return self.prompt(item) + self.anchor

    def cut(self, item: QA, *, tokens: int | None = None, bytes: int | None = None) -> Cut:
        """A control's prompt: the same text, its context cut, its question kept.

        Args:
            item: with a question.
            tokens: of context and question at most.
            bytes: of context and question in UTF-8 at most. Without both, the whole text, as `text` has it.

        Raises:
            StepwellError: as `prompt`.
        """
        question, context = item.question.strip(), item.context or ""
        spent, spent_bytes = len(self._words(f" {question}")), len(question.encode())
        if bytes is not None:
            context = context.encode()[: max(0, bytes - spent_bytes)].decode(errors="ignore")
        words = self._words(f" {context}") if context.strip() else ()
        room = len(words) if tokens is None else max(0, tokens - spent)
        ids, kept = self._prompt(replace(item, context=context or None), self.params.max_prompt_tokens, room)
        over = (tokens is not None and spent > tokens) or (bytes is not None and spent_bytes > bytes)
        known = context if len(kept) == len(words) else self._read(kept).removeprefix(" ").rstrip("\ufffd")
        return Cut(
            ids=ids + self.anchor, tokens=spent + len(kept), bytes=spent_bytes + len(known.encode()), over=over
        )  # fmt: skip

    def around(self, prefix: Tensor) -> Tensor:
        """BOS, prefix (B, M, D) and anchor as embeddings (B, BOS + M + anchor, D), in the model's precision.

        With the embeddings of `prompt` after its BOS as prefix, this is `text`, embedded.

        Raises:
            StepwellError: a prefix of another width, or so long that model and answer have no room for it.
        """
        if prefix.dim() != 3 or prefix.shape[2] != self.backbone.width:
            raise StepwellError(
                f"the prefix has the shape {tuple(prefix.shape)}",
                f"give (B, M, D) with the model's width, D = {self.backbone.width}",
            )
        self._check_positions(len(self.bos) + prefix.shape[1], f"prefix of {prefix.shape[1]} vectors")
        device = next(self.backbone.parameters()).device
        known = self.backbone.embed(torch.tensor([self.bos + self.anchor], dtype=torch.long, device=device))
        known = known.expand(len(prefix), -1, -1)
        return torch.cat((known[:, : len(self.bos)], prefix.to(known), known[:, len(self.bos) :]), 1)

    # What is answered.

    def answer(self, text: str) -> tuple[int, ...]:
        """The tokens of an answer and EOS, of which the first `max_answer_tokens`: a longer answer has no EOS to learn.

        Raises:
            StepwellError: the text has a special token in it, where decoding might stop.
        """
        words = self._words(self.lead + text.strip(), strict=True) if text.strip() else ()
        return (*words, self.eos)[: self.params.max_answer_tokens]

    def target(self, item: QA) -> tuple[int, ...]:
        """The answer to be learnt: the first gold one, or `no_answer`. Raises StepwellError where it is blank."""
        return self.answer(self._golds(item)[0])

    def first_tokens(self, item: QA) -> frozenset[int]:
        """The tokens with which a right answer may begin: those of all gold answers."""
        return frozenset(self.answer(gold)[0] for gold in self._golds(item))

    def said(self, ids: Sequence[int], stopped: bool) -> tuple[str, bool]:
        """What was answered with some tokens, and whether the answer came to its end.

        Without a template an answer ends with its line as well: a model that was not taught EOS writes on. What says
        `no_answer` is no answer, "".
        """
        text = self._read(ids).strip()
        if self.params.template == "plain":
            line = text.split("\n", 1)[0].strip()
            text, stopped = line, stopped or line != text
        silent = bool(self.params.no_answer) and squad_form(text) == squad_form(self.params.no_answer)
        return "" if silent else text, stopped

    def coverage(self, items: Iterable[QA]) -> Coverage:
        """How many items the limits cut. Raises as `prompt`."""
        n = contexts_cut = lost = answers_cut = 0
        for item in items:
            whole = len(self._words(f" {item.context}")) if (item.context or "").strip() else 0
            _, kept = self._prompt(item, self.params.max_prompt_tokens)
            read = squad_form(self._read(kept))
            n += 1
            contexts_cut += len(kept) < whole
            lost += len(kept) < whole and bool(item.answers) and not any(squad_form(g) in read for g in item.answers)
            answers_cut += self.target(item)[-1] != self.eos
        return Coverage(n=n, contexts_cut=contexts_cut, answers_lost=lost, answers_cut=answers_cut)

    # What is compared.

    def parts(self) -> dict[str, Any]:
        """Everything by which two contracts can differ, as literals that a record can hold."""
        tokenizer = self.backbone.tokenizer
        example, _ = self._prompt(EXAMPLE, UNLIMITED)
        return {
            **self.params.model_dump(mode="json"),
            "anchor": self._shown(self.anchor) + self.lead, "anchor_ids": list(self.anchor), "bos_ids": list(self.bos),
            "eos_id": self.eos, "stop_ids": sorted(self.stops), "head_ids": list(self.head),
            "tail_ids": list(self.tail), "example_ids": [*example, *self.anchor, *self.answer("Ada")],
            "tokenizer": {"size": len(tokenizer), "probe_ids": list(encoded(tokenizer, PROBE))},
        }  # fmt: skip

    def fingerprint(self) -> str:
        """The sha256 (64 hex digits) of `parts`."""
        return fingerprint(self.parts())

    def shown(self) -> str:
        """The contract for people, a few lines: what every arm reads, with the texts' places in braces."""
        asked = [self.params.instruction, "Context: {context}", "Question: {question}"]
        body = "\n\n".join(part for part in asked if part) + self._closing
        bos, head, tail, anchor = map(self._shown, (self.bos, self.head, self.tail, self.anchor))
        end = self._shown((self.eos,))
        limits = f"{self.params.max_prompt_tokens} tokens of prompt, {self.params.max_answer_tokens} of answer"
        return "\n".join(
            (
                f"text:   {_visible(bos + head + body + tail)} | {_visible(anchor)} | {self.lead}{{answer}}{end}",
                f"latent: {_visible(bos)} | {{M vectors}} | {_visible(anchor)} | {self.lead}{{answer}}{end}",
                f"at most {limits}; the context is cut, the question never; fingerprint {self.fingerprint()[:12]}",
            )
        )

    # Parts of a prompt.

    @property
    def _closing(self) -> str:
        return "\n" if self.params.template == "plain" else ""

    def _prompt(self, item: QA, limit: int, room: int | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A prompt of at most `limit` tokens, with at most `room` of the context; and the context's tokens in it."""
        if not item.question.strip():
            raise StepwellError(f"item {item.id!r} has no question", "leave it out: the contract is for questions")
        context = self._words(f" {item.context}") if (item.context or "").strip() else ()
        opening, back = self._asked(item.question, bool(context))
        left = limit - len(self.bos + opening + back)
        context = context[: max(0, left if room is None else min(left, room))]
        if not context:
            opening, back = self._asked(item.question, False)
        ids = self.bos + opening + context + back
        if len(ids) > limit:
            raise StepwellError(
                f"item {item.id!r}: template, instruction and question have {len(ids)} tokens, and {limit} are allowed",
                "allow more tokens, shorten the instruction, or leave the item out: a question is never cut",
            )
        return ids, context

    def _asked(self, question: str, context: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What stands before the context, and what after it."""
        before = [part for part in (self.params.instruction, "Context:" if context else "") if part]
        opening = "\n\n".join(before)
        gap = "\n\n" if opening else ""
        return (
            self.head + (self._words(opening) if opening else ()),
            self._words(f"{gap}Question: {question.strip()}{self._closing}") + self.tail,
        )

    def _words(self, text: str, *, strict: bool = False) -> tuple[int, ...]:
        """The tokens of what somebody says, none of them special; `strict`: nor unknown to the tokenizer."""
        tokenizer = self.backbone.tokenizer
        ids = encoded(tokenizer, text)
        bad = self.special.intersection(ids)
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown in bad and not strict and getattr(tokenizer, "unk_token", "") not in text:
            bad = bad - {unknown}
        if bad:
            raise StepwellError(
                f"the text {text.strip()[:60]!r} holds {self._shown(sorted(bad)[:1])!r}, which is no word to the model",
                "take it out: it would end a turn, or could not be written back",
            )
        return ids

    def _golds(self, item: QA) -> tuple[str, ...]:
        golds = item.answers or (self.params.no_answer,)
        if item.answers and not all(gold.strip() for gold in golds):
            raise StepwellError(
                f"item {item.id!r} has a blank answer", "leave it out; a question without an answer has none at all"
            )
        return golds

    def _read(self, ids: Iterable[int]) -> str:
        return self.backbone.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _shown(self, ids: Iterable[int]) -> str:
        return self.backbone.tokenizer.decode(list(ids), skip_special_tokens=False)

    def _check_positions(self, columns: int, what: str) -> None:
        # The last token of an answer is written, never read: it needs no position.
        needed, known = columns + len(self.anchor) + self.params.max_answer_tokens - 1, self.backbone.max_positions
        if known is not None and needed > known:
            raise StepwellError(
                f"a {what}, the anchor and {self.params.max_answer_tokens} tokens of answer need {needed} positions, "
                f"and the model knows {known}",
                "lower max_prompt_tokens, the vectors or max_answer_tokens, or choose a model with a longer context",
            )


def same_contract(a: Contract | Mapping[str, Any], b: Contract | Mapping[str, Any]) -> None:
    """Refuse to compare what was made under two contracts.

    Args:
        a, b: contracts, or what `Contract.parts` gave for a record.

    Raises:
        StepwellError: they differ; all parts that do are named, with both values.
    """
    first, second = (one.parts() if isinstance(one, Contract) else dict(one) for one in (a, b))
    differing = [
        f"{name} ({_brief(first.get(name))} against {_brief(second.get(name))})"
        for name in sorted(first.keys() | second.keys())
        if canonical(first.get(name)) != canonical(second.get(name))
    ]
    if differing:
        raise StepwellError(
            f"the prompt contracts differ in {', '.join(differing)}",
            "train, evaluate and compare under one contract: same model, template, anchor and limits",
        )


def _visible(text: str) -> str:
    return text.replace("\n", "\\n")


def _brief(value: Any) -> str:
    said = canonical(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
