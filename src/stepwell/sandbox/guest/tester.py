"""The side of the tests: runs them against a program that lives in another sandbox, and says what came of it."""

from __future__ import annotations

import builtins
import importlib
import sys
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from .wire import Channel, TooLong, decode, encode


class ProgramGone(BaseException):
    """The program ended while its tests still ran. No `Exception`, so that tests do not catch it."""


class CannotCross(BaseException):
    """The tests hand over something that is no plain value: the fault of the tests, not of the program."""


def judge(tests: str, entry_point: str, channel: Channel) -> dict[str, str]:
    """{"status", "detail"}: passed, failed, memory, output, gone (the program ended) or sandbox-error."""
    link = Link(channel)
    path = "/tmp/hidden_tests.py"
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:  # noqa: PTH123  (pathlib takes time)
        file.write(tests)
    module, loader = ModuleType("hidden_tests"), SourceFileLoader("hidden_tests", path)
    try:
        vars(module).update(link.namespace(loader, entry_point))
        loader.exec_module(module)
        status, detail = "passed", ""
    except ProgramGone:
        status, detail = "gone", "the program ended before its tests had"
    except (CannotCross, SyntaxError) as error:
        fault = isinstance(error, CannotCross) or (error.filename or "").endswith("hidden_tests.py")
        status, detail = "sandbox-error" if fault else "failed", _told(error)
    except TooLong as error:
        status, detail = "output", str(error)
    except MemoryError as error:
        status, detail = "memory", _told(error)
    # Any other error means that the tests do not pass; SystemExit too.
    except BaseException as error:
        status, detail = "failed", _told(error)
    if link.trouble and status in ("passed", "failed") and (status == "failed" or link.trouble[0] == "gone"):
        status, detail = link.trouble
    return {"status": status, "detail": detail[:2000]}


def _names(code: CodeType) -> set[str]:
    """The names of globals and attributes in a piece of compiled text, its functions and classes included."""
    inner = [_names(one) for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*inner)


def _told(error: BaseException) -> str:
    """The error in one line, with the line of the tests in which it came up."""
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith("hidden_tests.py"):
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is None:
        return text
    with open("/tmp/hidden_tests.py", encoding="utf-8", errors="surrogatepass") as file:  # noqa: PTH123
        return f"{text} (line {line} of the tests: {file.read().splitlines()[line - 1].strip()[:200]})"


class Link:
    """The program as the tests see it.

    Attributes:
        trouble: (status, detail) of the first thing that was not the program's answer: tests may have caught it.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._remotes: dict[int, Remote] = {}
        self.trouble: tuple[str, str] | None = None

    def namespace(self, loader: SourceFileLoader, entry_point: str) -> dict[str, Any]:
        """The program's names that the tests mention.

        The program must not say what `abs` or `all` mean to the tests: a builtin's name is its own only where it is
        what the tests are about.
        """
        code = loader.get_code("hidden_tests")
        names = self._reply()["names"]
        wanted = (_names(code) if code else set()) - (vars(builtins).keys() - {entry_point})
        return {name: self.ask("get", name) for name in names if name in wanted}

    def ask(self, what: str, target: int | str, *arguments: Any, **named: Any) -> Any:
        """What the program answers. Raises what it raised, as a builtin exception of that name where there is one."""
        request = [what, target, [self._encode(one) for one in arguments]]
        try:
            self._channel.send([*request, {key: self._encode(one) for key, one in named.items()}])
        except OSError:
            raise self._gone() from None
        reply = self._reply()
        for place, now in reply.get("changed", {}).items():
            _become(arguments[int(place)], self._decode(now))
        return self._decode(reply["value"])

    def _reply(self) -> dict[str, Any]:
        try:
            reply = self._channel.receive()
        except EOFError:
            raise self._gone() from None
        except TooLong as error:
            self.trouble = self.trouble or ("output", str(error))
            raise
        if "error" not in reply:
            return reply
        name, text = str(reply["error"][0]), str(reply["error"][1])
        if name in ("MemoryError", "TooLong"):
            self.trouble = self.trouble or ("memory" if name == "MemoryError" else "output", f"{name}: {text}")
        raise _exception(name)(text)

    def _gone(self) -> ProgramGone:
        self.trouble = ("gone", "the program ended before its tests had")
        return ProgramGone()

    def _encode(self, value: Any) -> Any:
        return encode(value, self._number)

    def _number(self, value: Any) -> int:
        if not isinstance(value, Remote):
            raise CannotCross(f"the tests hand the program a {type(value).__name__}, which is no plain value")
        return object.__getattribute__(value, "_number")

    def _decode(self, found: Any) -> Any:
        return decode(found, self._remote, _standard_module)

    def _remote(self, number: Any) -> Remote:
        return self._remotes.setdefault(number, Remote(self, number))


class Remote:
    """An object of the program that is no plain value. It is equal to itself alone, whatever its class says."""

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it, in the program."""
        return _ask(self, "call", *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return _ask(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "setattr", name, value)

    def __iter__(self) -> Any:
        return _ask(self, "iter")

    def __next__(self) -> Any:
        return _ask(self, "next")

    def __len__(self) -> int:
        return _ask(self, "len")

    def __bool__(self) -> bool:
        return _ask(self, "bool")

    def __str__(self) -> str:
        return _ask(self, "str")

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "setitem", key, value)

    def __contains__(self, value: Any) -> bool:
        return _ask(self, "contains", value)


def _ask(remote: Remote, what: str, *arguments: Any, **named: Any) -> Any:
    link: Link = object.__getattribute__(remote, "_link")
    return link.ask(what, object.__getattribute__(remote, "_number"), *arguments, **named)


def _become(old: Any, new: Any) -> None:
    """Give a list, dict, set or bytearray of the tests the content that the program left in its copy."""
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)


def _exception(name: str) -> type[Exception]:
    found = getattr(builtins, name, None)
    if isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, UnicodeError):
        return found
    return type(name if name.isidentifier() else "Error", (Exception,), {})


def _standard_module(name: str) -> ModuleType:
    if name.split(".")[0] not in sys.stdlib_module_names:
        raise ValueError(f"{name!r} is no module of the standard library")
    return importlib.import_module(name)
