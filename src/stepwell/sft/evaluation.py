"""The questions of evaluation sets, in whatever form they come, for the check that none is trained on."""

from __future__ import annotations

from pathlib import Path

from stepwell.errors import StepwellError
from stepwell.tasks.sources import Entry, read_entries

__all__ = ["read_evaluation"]

FORMAT = "objects with `question`, `prompt`, `instruction`, `text` or `messages`, as a JSON list or one a line"
KEYS = ("question", "prompt", "instruction", "text")


def read_evaluation(file: Path | str) -> dict[str, str]:
    """The questions of a set by `<file stem>/<id or place>`.

    Raises:
        StepwellError: the file is missing, empty or not JSON, or an entry has no question.
    """
    path = Path(file)
    found: dict[str, str] = {}
    for place, entry in enumerate(read_entries(path, FORMAT)):
        text = _question(entry)
        if text is None:
            raise StepwellError(f"entry {place} has no question", f"expected {FORMAT}", path=path)
        found[f"{path.stem}/{entry.get('id', entry.get('task_id', place))}"] = text
    return found


def _question(entry: Entry) -> str | None:
    for key in KEYS:
        if isinstance(text := entry.get(key), str) and text.strip():
            given = entry.get("input") if key == "instruction" else None
            return f"{text}\n\n{given}" if given else text
    messages = entry.get("messages")
    if not isinstance(messages, list):
        return None
    texts = [each.get("content") for each in messages if isinstance(each, dict) and each.get("role") == "user"]
    return "\n".join(text for text in texts if isinstance(text, str)) or None
