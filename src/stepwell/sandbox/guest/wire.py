"""How values go between a program and its tests: as plain data, never as code.

A frame is 4 bytes of length and so many bytes of JSON. Plain values keep their type and are taken by value; anything
else stays where it is and is known by a number, its handle. So a program cannot hand the tests an object whose `==`
says yes to everything.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

ITERATED: dict[Any, str] = {tuple: "t", set: "s", frozenset: "f", deque: "q"}
LARGEST_JSON_INTEGER = 1 << 1000
EXACT = {("fractions", "Fraction"): "F", ("decimal", "Decimal"): "D"}
"""Numbers whose modules take milliseconds to import, and are, where a program uses them."""


class TooLong(Exception):
    """A frame is longer than is allowed."""


class Channel:
    """Frames over two pipes."""

    def __init__(self, read: int, write: int, most_bytes: int) -> None:
        self._read, self._write, self._most_bytes = read, write, most_bytes

    def send(self, message: Any) -> None:
        """Write one frame. TooLong where it would be too long, and then nothing is written."""
        text = json.dumps(message, separators=(",", ":")).encode()
        if len(text) > self._most_bytes:
            raise TooLong(f"{len(text)} bytes in one value, {self._most_bytes} allowed")
        left = memoryview(len(text).to_bytes(4, "little") + text)
        while left:
            left = left[os.write(self._write, left) :]

    def receive(self) -> Any:
        """Read one frame. EOFError where the other side is gone, TooLong, ValueError where it is no frame."""
        size = int.from_bytes(self._exactly(4), "little")
        if size > self._most_bytes:
            raise TooLong(f"{size} bytes in one value, {self._most_bytes} allowed")
        return json.loads(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            piece = os.read(self._read, min(size - len(found), 1 << 20))
            if not piece:
                raise EOFError("the other side is gone")
            found += piece
        return bytes(found)


def encode(value: Any, handle: Callable[[Any], Any]) -> Any:
    """A value as JSON can hold it; `handle` says what stands for one that is not plain."""

    def inner(values: Iterable[Any]) -> list[Any]:
        return [encode(one, handle) for one in values]

    if value is None or type(value) in (bool, str, float):
        return value
    # The methods of the builtin types, not the value's own: a subclass cannot say what it is worth.
    if isinstance(value, int):
        exact = int.__add__(value, 0)
        return exact if abs(exact) < LARGEST_JSON_INTEGER else {"i": hex(exact)}
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return inner(list.__iter__(value))
    if isinstance(value, dict):
        return {"d": inner(x for pair in dict.items(value) for x in pair)}
    for kind, tag in ITERATED.items():
        if isinstance(value, kind):
            return {tag: inner(kind.__iter__(value))}
    return _rarer(value, handle)


def _rarer(value: Any, handle: Callable[[Any], Any]) -> Any:
    if isinstance(value, bytes | bytearray):
        return {"b" if isinstance(value, bytes) else "B": bytes(value).hex()}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, range):
        return {"r": [value.start, value.stop, value.step]}
    if (kind := (type(value).__module__, type(value).__name__)) in EXACT:
        return {EXACT[kind]: str(value)}
    if type(value) is array:
        return {"a": [value.typecode, value.tolist()]}
    if isinstance(value, type) and vars(builtins).get(value.__name__) is value:
        return {"T": value.__name__}
    if type(value) is ModuleType:
        return {"m": value.__name__}
    return {"h": handle(value)}


def decode(found: Any, handled: Callable[[Any], Any], module: Callable[[str], Any]) -> Any:
    """The value that `encode` wrote. ValueError where the data is of no value."""
    if isinstance(found, list):
        return [decode(one, handled, module) for one in found]
    if not isinstance(found, dict):
        return found
    if len(found) != 1:
        raise ValueError("no value")
    ((tag, held),) = found.items()
    if tag == "h":
        return handled(held)
    if tag == "m":
        return module(held)
    if tag in COLLECTIONS:
        return COLLECTIONS[tag](decode(one, handled, module) for one in held)
    if tag == "d":
        values = [decode(one, handled, module) for one in held]
        return dict(zip(values[::2], values[1::2], strict=True))
    if tag not in SCALARS:
        raise ValueError("no value")
    return SCALARS[tag](held)


def _builtin_type(name: str) -> type:
    found = vars(builtins).get(name)
    if not isinstance(found, type):
        raise ValueError(f"{name!r} is no builtin type")
    return found


COLLECTIONS: dict[str, Callable[[Any], Any]] = {"t": tuple, "s": set, "f": frozenset, "q": deque}
SCALARS: dict[str, Callable[[Any], Any]] = {
    "i": lambda held: int(held, 16),
    "b": bytes.fromhex,
    "B": bytearray.fromhex,
    "c": lambda held: complex(*held),
    "r": lambda held: range(*held),
    "F": lambda held: importlib.import_module("fractions").Fraction(held),
    "D": lambda held: importlib.import_module("decimal").Decimal(held),
    "T": _builtin_type,
    "a": lambda held: array(held[0], held[1]),
}
