"""The stage `tune.data`: conversations to train on, and items to grade, which share no run of words with them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from stepwell.chat import Message
from stepwell.errors import StepwellError
from stepwell.grading.benchmarks import MATHS, Benchmark, code, gsm8k, open_ended, squad
from stepwell.sft.conversations import Conversation, read_conversations
from stepwell.sft.overlap import Overlap
from stepwell.stage import Input, StageContext
from stepwell.studies.tune.params import (
    Code,
    Conversations,
    Gsm8k,
    Mbpp,
    OpenEnded,
    Squad,
    TestSource,
    TuneDataParams,
    WordProblems,
)
from stepwell.tasks.base import QA
from stepwell.tasks.gsm8k import MathItem, load_gsm8k
from stepwell.tasks.word_problems import category_of, make_word_problems

if TYPE_CHECKING:
    from stepwell.tasks.code import CodeProblem

Problem: TypeAlias = "MathItem | CodeProblem"
TRAIN, HELD, BENCHMARKS = "train.jsonl", "held.jsonl", "benchmarks"
POOL, CODE_POOL = "pool.jsonl", "pool-code.jsonl"
SPARE = 2
"""Generated problems are made so many times over: some of them share a run of words with what is graded."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What the stage makes.

    Attributes:
        conversations: of training and held-out set together, in the order they were drawn.
        problems: id -> the problem that a conversation was made of; empty where there is no ground truth.
        benchmarks: name -> items.
        left_out: id of a conversation -> the item that it shares a run of words with.
    """

    conversations: tuple[Conversation, ...]
    problems: dict[str, Problem]
    benchmarks: dict[str, tuple[Any, ...]]
    left_out: dict[str, str]


def make(params: TuneDataParams, ctx: StageContext) -> None:
    """Write training set, held-out set, the problems that can be mined, and the benchmarks' items."""
    made = draw(params)
    wanted = params.n_train + params.n_held if params.n_train else len(made.conversations)
    if len(made.conversations) < wanted or len(made.conversations) <= params.n_held:
        raise StepwellError(
            f"there are {len(made.conversations)} conversations, of which {params.n_held} are held out and "
            f"{params.n_train or 'the others'} trained on; {len(made.left_out)} were left out, since they overlap with "
            "what is graded",
            "ask for fewer, or name a larger source",
            stage=ctx.job.id,
        )
    held, train = made.conversations[: params.n_held], made.conversations[params.n_held : wanted]
    for name, some in ((TRAIN, train), (HELD, held)):
        _dataset(ctx, name, [_line(one) for one in some], params.source.kind, Counter(one.category for one in some))
    mined = [made.problems[one.id] for one in train if one.id in made.problems]
    maths = [asdict(one) for one in mined if isinstance(one, MathItem)]
    _dataset(ctx, POOL, maths, params.source.kind, Counter())
    if any(isinstance(source, Mbpp) for source in params.sources):
        programs = [asdict(one) for one in mined if not isinstance(one, MathItem)]
        _dataset(ctx, CODE_POOL, programs, params.source.kind, Counter())
    for name, items in made.benchmarks.items():
        source = params.benchmarks[name]
        rows = [asdict(item) for item in items]
        _dataset(ctx, f"{BENCHMARKS}/{name}.jsonl", rows, source.kind, Counter())
    overlaps = overlapping(made.conversations, made.benchmarks)
    detail = f"{len(overlaps)} conversations share words with what is graded; {len(made.left_out)} were left out"
    ctx.write("check", name="no-overlap", passed=not overlaps, detail=detail)


def draw(params: TuneDataParams) -> Made:
    """Everything, drawn by the seed of the params. Raises StepwellError as the readers do."""
    generated, benchmarks = _generated(params)
    for name, source in params.benchmarks.items():
        if not isinstance(source, WordProblems):
            items = _graded(source)
            random.Random(f"{params.draw}/{name}").shuffle(items)
            benchmarks[name] = tuple(items[: params.n_test] if params.n_test else items)
    problems: list[Problem] = [*generated]
    conversations: list[Conversation] = []
    for source in params.sources:
        if isinstance(source, Conversations):
            conversations += read_conversations(source.file)
        elif not isinstance(source, WordProblems):
            problems += _training_split(source)
    conversations += [conversation_of(item, params) for item in problems]
    _need_ids(conversations)
    random.Random(f"{params.draw}/train").shuffle(conversations)
    left_out = overlapping(conversations, benchmarks)
    kept = tuple(one for one in conversations if one.id not in left_out)
    return Made(
        conversations=kept, problems={item.id: item for item in problems}, benchmarks=benchmarks, left_out=left_out
    )


def conversation_of(item: Problem, params: TuneDataParams) -> Conversation:
    """A problem as it is trained on: asked in the words in which it would be graded, answered by its solution."""
    if isinstance(item, MathItem):
        (question,) = gsm8k([item], split="train", ask=_asking(params)).questions
        asked, solution, category = question.messages, item.plain_solution, category_of(item.id) or "maths"
    else:
        asked, solution, category = ({"role": "user", "content": item.question},), item.reference, "code"
    answer: Message = {"role": "assistant", "content": solution}
    return Conversation(id=item.id, messages=(*asked, answer), category=category)


def overlapping(conversations: Iterable[Conversation], benchmarks: dict[str, tuple[Any, ...]]) -> dict[str, str]:
    """Conversations that have an item of a benchmark, or 13 words in a row of one: id -> the item."""
    # Not with what follows every problem, which all of them share.
    known = Overlap.of({item.id: item.question for items in benchmarks.values() for item in items})
    found = {}
    for one in conversations:
        for message in one.messages:
            if (item := known.find(message["content"])) is not None:
                found[one.id] = item
                break
    return found


def one_input(ctx: StageContext, kind: str) -> Input:
    """The one needed job of a kind.

    Raises:
        StepwellError: there is none, or there are several.
    """
    found = ctx.made_by(kind)
    if len(found) != 1:
        raise StepwellError(
            f"the stage needs one job of the kind `{kind}`, and has {len(found)}",
            "name one such stage in its `needs`, on the same axes",
            stage=ctx.job.id,
        )
    return found[0]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What `make` wrote, as the stages after it read it.

    Attributes:
        folder: of its files.
        params: of the stage.
    """

    folder: Path
    params: TuneDataParams

    @classmethod
    def of(cls, ctx: StageContext) -> Self:
        """That of the one data stage that a stage needs. Raises as `one_input`."""
        made = one_input(ctx, "tune.data")
        return cls(folder=made.folder, params=TuneDataParams.model_validate(dict(made.job.params)))

    @property
    def train(self) -> list[Conversation]:
        """The training set."""
        return read_conversations(self.folder / TRAIN)

    @property
    def held(self) -> list[Conversation]:
        """The held-out set."""
        return read_conversations(self.folder / HELD)

    def benchmarks(self, names: Sequence[str] = ()) -> dict[str, Benchmark]:
        """The benchmarks, ready to be asked; those of some names only.

        Raises:
            StepwellError: there is no benchmark of a name.
        """
        return {
            name: _benchmark(name, self.params, read_lines(self.folder / BENCHMARKS / f"{name}.jsonl"))
            for name in self._known(names)
        }

    def code_problems(self, names: Sequence[str] = ()) -> list[CodeProblem]:
        """The problems of the benchmarks that are executed; of those of some names only. Raises as `benchmarks`."""
        return [
            problem
            for name in self._known(names)
            if isinstance(self.params.benchmarks[name], Code)
            for problem in _code_problems(read_lines(self.folder / BENCHMARKS / f"{name}.jsonl"))
        ]

    def graded(self) -> dict[str, str]:
        """The bare questions of all benchmarks, by id: what must not be trained on."""
        return {
            question.id: question.bare
            for benchmark in self.benchmarks().values()
            for question in benchmark.questions
        }  # fmt: skip

    def _known(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names, or all where none is given."""
        known = self.params.benchmarks
        if unknown := [name for name in names if name not in known]:
            raise StepwellError(
                f"there is no benchmark `{unknown[0]}`; benchmarks: {', '.join(known)}",
                "name some of them, or add it to the stage `data`",
            )
        return tuple(names or known)

    def pools(self, items: int = 0) -> list[Benchmark]:
        """The training problems, or the first `items` of each kind, as benchmarks of the split `train`: may be mined.

        Raises:
            StepwellError: the training set has no ground truth.
        """
        found = []
        if maths := [_problem(row) for row in self._pooled(POOL, items)]:
            found.append(gsm8k(maths, split="train", ask=_asking(self.params), name="pool"))
        if programs := self.pooled_code(items):
            found.append(_executed("pool-code", programs, split="train"))
        if not found:
            raise StepwellError(
                "the training set has no problems with a known answer, so no failures can be mined from it",
                "train on word problems, GSM8K or MBPP, or take the stages of phase B out of the plan",
            )
        return found

    def pooled_code(self, items: int = 0) -> list[CodeProblem]:
        """The training problems, or the first `items`, whose answers are executed."""
        return _code_problems(self._pooled(CODE_POOL, items))

    def _pooled(self, name: str, items: int) -> list[dict[str, Any]]:
        path = self.folder / name
        rows = read_lines(path) if path.is_file() else []
        return rows[:items] if items else rows


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def _asking(params: TuneDataParams) -> str:
    return MATHS if params.ask is None else params.ask


def _generated(params: TuneDataParams) -> tuple[list[MathItem], dict[str, tuple[Any, ...]]]:
    """The word problems of benchmarks and training set, all drawn as one set of each form, so that none is in two."""
    sources: dict[str, TestSource | WordProblems] = {
        name: one for name, one in params.benchmarks.items() if isinstance(one, WordProblems)
    }
    trained = params.source if isinstance(params.source, WordProblems) else None
    found: dict[str, tuple[Any, ...]] = {}
    train: list[MathItem] = []
    for source in dict.fromkeys([*sources.values(), *([trained] if trained else [])]):
        assert isinstance(source, WordProblems)
        mine = [name for name, one in sources.items() if one == source]
        n = params.n_test * len(mine) + (SPARE * (params.n_train + params.n_held) if source == trained else 0)
        items = make_word_problems(n, params.draw, largest=source.largest, categories=source.categories)
        for place, name in enumerate(mine):
            found[name] = tuple(items[place * params.n_test : (place + 1) * params.n_test])
        if source == trained:
            train = items[params.n_test * len(mine) :]
    return train, found


def _training_split(source: Gsm8k | Mbpp) -> list[MathItem] | list[CodeProblem]:
    """The problems of a published set that may be trained on, and mined."""
    if isinstance(source, Gsm8k):
        return load_gsm8k(source.file or source.hub, split="train")
    from stepwell.tasks.code import load_mbpp

    return load_mbpp(source.file or source.hub, split="train")


def _need_ids(conversations: Sequence[Conversation]) -> None:
    """Two sources may name their lines alike."""
    name, count = Counter(one.id for one in conversations).most_common(1)[0]
    if count > 1:
        raise StepwellError(f"{count} conversations of the mixed sources have the id {name!r}", "give each its own id")


def _graded(source: TestSource) -> list[Any]:
    if isinstance(source, Gsm8k):
        return list(load_gsm8k(source.file or source.hub, split="test"))
    if isinstance(source, Squad):
        from stepwell.tasks.squad import load_squad

        return list(load_squad(source.file or source.hub, split="validation"))
    if isinstance(source, OpenEnded):
        return [QA(id=one.id, question=one.asked, answers=()) for one in read_conversations(source.file)]
    assert isinstance(source, Code)
    from stepwell.tasks.code import load_humaneval, load_mbpp

    hub = source.hub or ("openai/openai_humaneval" if source.kind == "humaneval" else "google-research-datasets/mbpp")
    load = load_humaneval if source.kind == "humaneval" else load_mbpp
    return list(load(source.file or hub))


def _benchmark(name: str, params: TuneDataParams, rows: Sequence[dict[str, Any]]) -> Benchmark:
    source = params.benchmarks[name]
    if isinstance(source, WordProblems | Gsm8k):
        return gsm8k([_problem(row) for row in rows], split="test", ask=_asking(params), name=name)
    if isinstance(source, Squad):
        items = [QA(**{**row, "answers": tuple(row["answers"])}) for row in rows]
        return squad(items, split="validation", name=name)
    if isinstance(source, OpenEnded):
        return open_ended(name, {row["id"]: row["question"] for row in rows}, split="test")
    return _executed(name, _code_problems(rows), split="test")


def _executed(name: str, items: Sequence[CodeProblem], *, split: str) -> Benchmark:
    from stepwell.sandbox import execute
    from stepwell.tasks.code import program

    problems = {problem.id: problem for problem in items}
    return code(
        name, {one.id: one.question for one in items}, {one.id: one.reference for one in items}, split=split,
        program=lambda one, text: program(problems[one], text), execute=execute,
    )  # fmt: skip


def _code_problems(rows: Sequence[dict[str, Any]]) -> list[CodeProblem]:
    from stepwell.tasks.code import CodeProblem

    return [CodeProblem(**row) for row in rows]


def _problem(row: dict[str, Any]) -> MathItem:
    return MathItem(**{**row, "answers": tuple(row["answers"])})


def _line(one: Conversation) -> dict[str, Any]:
    return {"id": one.id, "category": one.category, "messages": [dict(message) for message in one.messages]}


def _dataset(
    ctx: StageContext, name: str, rows: Sequence[dict[str, Any]], source: str, categories: Counter[str | None]
) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = ctx.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    ctx.write(
        "dataset", set=name.removesuffix(".jsonl"), n=len(rows), sha256=sha256(text.encode()).hexdigest(),
        source=source, family=None, categories=", ".join(f"{name} {count}" for name, count in categories.most_common()),
    )  # fmt: skip
