"""What asking a chat model comes to, wherever the model runs: conversations, answers, and a folder that keeps them.

Every text that a model wrote lies on disk under the sha256 of all that determines it, so a run that is begun again asks
nothing twice. A text that cannot be used is asked for again with the reason; what then is missing is said.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""
Check = Callable[[str], str]
"""What is wrong with an answer, in a few words; "" where it can be used."""

THINKING = re.compile(r"\s*<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of asking.

    Attributes:
        text: the answer; None where none could be used.
        why: why there is none; "" where there is one.
        cut: whether a limit cut off what was written last, or left no room for it; None where nobody says.
    """

    text: str | None
    why: str = ""
    cut: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One text that a model wrote.

    Attributes:
        text: as it came; "" where it wrote nothing.
        cut: whether it ran into the limit of its length; None where the model's server does not say.
    """

    text: str
    cut: bool | None = False


class Attempts:
    """What a model wrote, in a folder: one file for each request, named by the request's hash, whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, request: dict[str, Any]) -> list[Attempt]:
        """All that was written so far, first to last. A file that cannot be read counts as none: it is asked again."""
        try:
            found = json.loads(self._path(request).read_text(encoding="utf-8"))
            return [Attempt(**entry) for entry in found["attempts"]] if found["request"] == request else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def write(self, request: dict[str, Any], attempts: Sequence[Attempt]) -> None:
        """Keep them, in place of what was kept for this request. Raises StepwellError where that cannot be done."""
        content = json.dumps(
            {"request": request, "attempts": [asdict(attempt) for attempt in attempts]}, ensure_ascii=False, indent=1
        )
        path, new = self._path(request), None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, new = tempfile.mkstemp(prefix=f".{path.stem[:12]}-", suffix=".part", dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode())
                file.flush()
                os.fsync(file.fileno())
            Path(new).replace(path)
        except OSError as error:
            cause = f"an answer cannot be kept: {error.strerror or error}"
            raise StepwellError(cause, "free space, or name another folder", path=self.folder) from None
        finally:
            if new is not None:
                Path(new).unlink(missing_ok=True)

    def _path(self, request: dict[str, Any]) -> Path:
        return self.folder / f"{fingerprint(request)}.json"


def without_thinking(text: str) -> str:
    """An answer without the `<think>...</think>` that reasoning models put before it, and without outer spaces."""
    return THINKING.sub("", text, count=1).strip() if THINKING.match(text) else text.strip()


def fault(attempt: Attempt, check: Check, max_tokens: int) -> str:
    """Why an attempt is no answer; "" where it is one."""
    why = check(attempt.text) if attempt.text.strip() else "it is empty"
    return f"{why}, and cut off at {max_tokens} tokens" if why and attempt.cut else why


def next_try(messages: Sequence[Message], attempts: Sequence[Attempt], why: str) -> list[Message]:
    """The conversation that asks again after a fault: a model that is not random would repeat itself otherwise."""
    if not attempts or not attempts[-1].text.strip():
        return list(messages)
    return [
        *messages,
        {"role": "assistant", "content": attempts[-1].text},
        {"role": "user", "content": f"That answer cannot be used: {why}. Answer again, in the form asked for."},
    ]


def unusable(attempts: int, last: Attempt, why: str) -> Answer:
    """No answer after so many attempts, the last of which had the fault `why`."""
    tries = "try" if attempts == 1 else "tries"
    return Answer(text=None, why=f"no usable answer in {attempts} {tries}: {why}", cut=last.cut)


def anything(text: str) -> str:
    """The check that takes every answer with something in it."""
    return ""
