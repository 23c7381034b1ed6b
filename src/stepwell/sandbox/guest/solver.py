"""The side of the program: loads it, and does for the tests what they ask of it, until they hang up."""

from __future__ import annotations

import importlib
import operator
import os
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

from .wire import Channel, TooLong, decode, encode

MUTABLE = (list, dict, set, bytearray)
ACTIONS = {
    "iter": iter,
    "next": next,
    "len": len,
    "str": str,
    "bool": bool,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "contains": operator.contains,
    "getattr": getattr,
    "setattr": setattr,
}


def serve(text: str, channel: Channel) -> None:
    """Load the program, then answer requests, each [what, target, arguments, named arguments], until the end."""
    objects = Objects()
    try:
        names = _load(text)
    # Whatever it raises is its outcome; SystemExit too.
    except BaseException as error:
        channel.send(_error(error))
        return
    channel.send({"names": sorted(names)})
    while True:
        try:
            request = channel.receive()
        except EOFError:
            return
        try:
            answer = _answer(request, names, objects)
        except BaseException as error:
            answer = _error(error)
        _flush()
        try:
            channel.send(answer)
        except TooLong as error:
            channel.send(_error(error))


class Objects:
    """What the tests know by a number; it lives as long as the program."""

    def __init__(self) -> None:
        self._by_number: list[Any] = []
        self._numbers: dict[int, int] = {}

    def number(self, value: Any) -> int:
        """The number of an object, the same for the same object."""
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._by_number)
            self._by_number.append(value)
        return self._numbers[id(value)]

    def __getitem__(self, number: int) -> Any:
        return self._by_number[number]


def _load(text: str) -> dict[str, Any]:
    path = "/tmp/program.py"
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:  # noqa: PTH123
        file.write(text)
    module = sys.modules["program"] = ModuleType("program")
    module.__file__ = path
    SourceFileLoader("program", path).exec_module(module)
    _flush()
    return {name: value for name, value in vars(module).items() if not name.startswith("__")}


def _answer(request: Any, names: dict[str, Any], objects: Objects) -> dict[str, Any]:
    what, target, arguments, named = request
    if what == "get":
        return {"value": encode(names[target], objects.number)}
    thing = objects[target]
    given = [decode(one, objects.__getitem__, importlib.import_module) for one in arguments]
    keywords = {key: decode(one, objects.__getitem__, importlib.import_module) for key, one in named.items()}
    value = thing(*given, **keywords) if what == "call" else ACTIONS[what](thing, *given)
    answer: dict[str, Any] = {"value": encode(value, objects.number)}
    # A function may change the list it was given; the tests hold another copy, and are told.
    for place, one in enumerate(given):
        if isinstance(one, MUTABLE) and (now := encode(one, objects.number)) != arguments[place]:
            answer.setdefault("changed", {})[str(place)] = now
    return answer


def _error(error: BaseException) -> dict[str, Any]:
    try:
        text = str(error)[:2000]
    except Exception:
        text = "no message"
    return {"error": [type(error).__name__, text]}


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)  # the program closed or replaced its output
