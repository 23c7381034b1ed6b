"""The frozen policy: the gates as they stood before the first stage, hashed, and every override with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint
from stepwell.store.files import write_atomically


def freeze(
    path: Path, gates: Sequence[Mapping[str, Any]], reason: str | None = None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Write the policy of a new run, or hold a resumed one to the policy it has.

    Gives the policy in force and the override that was added to it just now, where there is one.

    Args:
        path: policy.json.
        gates: the plan's gates as plain JSON.
        reason: why changed gates are taken all the same; each change is then kept under `overrides`.

    Raises:
        StepwellError: the gates differ and no reason is given, or policy.json was changed by hand.
    """
    if not path.exists():
        policy = {"sha256": fingerprint(gates), "gates": list(gates), "overrides": []}
        write_atomically(path, json.dumps(policy, indent=1))
        return policy, None
    policy = _read(path)
    changes = differences(_by_name(policy["gates"]), _by_name(gates), "gates")
    if not changes:
        return policy, None
    if not reason or not reason.strip():
        raise StepwellError(
            f"the gates were changed after the run began: {'; '.join(changes)}",
            'Undo the change, use a new run folder, or give a reason with --reason "...": it will be shown.',
            path=path,
        )
    override = {"reason": reason.strip(), "changes": changes, "replaced_sha256": policy["sha256"]}
    policy = {"sha256": fingerprint(gates), "gates": list(gates), "overrides": [*policy["overrides"], override]}
    write_atomically(path, json.dumps(policy, indent=1))
    return policy, override


def override_of(policy: Mapping[str, Any], gate: str) -> dict[str, Any] | None:
    """Reasons and changes that concern one gate, for its verdict; None where it stands as it was frozen."""
    place = f"gates.{gate}"
    found = [
        (override["reason"], [text for text in override["changes"] if text.startswith((f"{place}.", f"{place}:"))])
        for override in policy.get("overrides") or ()
    ]
    found = [(reason, changes) for reason, changes in found if changes]
    if not found:
        return None
    return {
        "reason": "; ".join(dict.fromkeys(reason for reason, _ in found)),
        "changes": [text for _, changes in found for text in changes],
    }


def differences(old: Any, new: Any, place: str) -> list[str]:
    """What differs between two JSON values, one text for each leaf: `gates.early.criteria.0.threshold: 0.9 -> 0.5`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys: Iterable[Any] = dict.fromkeys([*old, *new])
        return [
            text for key in keys for text in differences(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{place}.{key}")
        ]
    if isinstance(old, list) and isinstance(new, list):
        count = max(len(old), len(new))
        one, two = ([*items, *[_ABSENT] * (count - len(items))] for items in (old, new))
        return [text for index in range(count) for text in differences(one[index], two[index], f"{place}.{index}")]
    if type(old) is type(new) and old == new:
        return []
    return [f"{place}: {_shown(old)} -> {_shown(new)}"]


class _Absent:
    """Stands where one side has no such key."""


_ABSENT = _Absent()


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)


def _by_name(gates: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    # Through JSON, so that tuples and lists compare equal.
    return {gate["name"]: json.loads(json.dumps({key: gate[key] for key in gate if key != "name"})) for gate in gates}


def _read(path: Path) -> dict[str, Any]:
    try:
        policy = json.loads(path.read_text(encoding="utf-8"))
        whole = fingerprint(policy["gates"]) == policy["sha256"] and isinstance(policy["overrides"], list)
    except (ValueError, KeyError, TypeError, AttributeError, StepwellError):
        whole = False
        policy = {}
    if not whole:
        raise StepwellError(
            "the frozen policy was changed by hand: its sha256 does not match its gates",
            "Put the file back as it was, or use a new run folder.",
            path=path,
        )
    return policy
