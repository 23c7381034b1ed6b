"""`stepwell audit data --format steps`: faults of files of questions with written steps and an answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stepwell.audit.data import FileAudit, Finding
from stepwell.tasks.prosqa.items import missing_fields, read_json_list
from stepwell.tasks.written import FORMAT, textual, up_to_spaces

CODES: Mapping[str, str] = MappingProxyType(
    {
        "missing-field": "question, answer or steps missing, empty or of another type",
        "no-steps": "the list of steps is empty, or a step is: nothing can be removed for a thought",
        "duplicate-item": "an earlier item of the file has the same question; the example says if its answer differs",
        "split-overlap": "another file has the same question",
    }
)
"""What each finding means, in the order of the report."""
Entries = Mapping[str, dict[str, Any]]


def audit_written(paths: Sequence[Path | str]) -> list[FileAudit]:
    """Audit files one by one and against each other; questions are the same up to spaces. No rule is scored.

    Raises:
        StepwellError: a file is missing, empty, not JSON, or not a list of objects.
    """
    files = []
    for path in map(Path, paths):
        entries = enumerate(read_json_list(path, FORMAT))
        files.append({f"{path.stem}-{place:05d}": textual(entry) for place, entry in entries})
    where: dict[str, dict[int, str]] = defaultdict(dict)
    for number, entries in enumerate(files):
        for name, entry in entries.items():
            where[_asked(entry)].setdefault(number, name)
    return [_report(str(path), number, files[number], where) for number, path in enumerate(paths)]


def _asked(entry: Mapping[str, Any]) -> str:
    return up_to_spaces(str(entry.get("question", "")))


def _report(name: str, number: int, entries: Entries, where: Mapping[str, Mapping[int, str]]) -> FileAudit:
    found: dict[str, dict[str, str]] = {code: {} for code in CODES}
    for item, entry in entries.items():
        if missing := missing_fields(entry):
            found["missing-field"][item] = ", ".join(missing)
            continue
        if not entry["steps"] or not all(step.strip() for step in entry["steps"]):
            found["no-steps"][item] = _asked(entry)[:60]
        places = where[_asked(entry)]
        if (first := places[number]) != item:
            same = entries[first].get("answer") == entry["answer"]
            found["duplicate-item"][item] = f"same as {first}" if same else f"same as {first}, with another answer"
        if others := [other for file, other in places.items() if file != number]:
            found["split-overlap"][item] = others[0]
    findings = tuple(_findings(found, len(entries)))
    return FileAudit(file=name, n=len(entries), findings=findings, shortcuts=())


def _findings(found: Mapping[str, Mapping[str, str]], n: int) -> Iterable[Finding]:
    for code, items in found.items():
        if items:
            first, told = next(iter(items.items()))
            yield Finding(code=code, count=len(items), of=n, items=tuple(items), example=f"{first}: {told}")
