"""The code in a model's answer, in all the forms in which models give it.

A function's body that goes on where the prompt ended; a whole function; one or several fenced blocks, closed or not,
with prose around them; a fence that the prompt had opened; MBPP's [BEGIN] and [PYTHON] marks; code among prose without
any fence; a session of the interpreter. Nothing of it is run here.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

FENCE = re.compile(
    r"(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n`]*(?:\n(?P<code>.*?)(?:(?P=fence)|\Z)|\Z)", re.S
)
PYTHON = frozenset({"", "python", "python3", "py", "py3", "pycon", "ipython"})
MARKS = re.compile(r"^[ \t]*\[/?(?:BEGIN|DONE|PYTHON|CODE|ANSWER)\][ \t]*$", re.M | re.I)
THOUGHTS = re.compile(r"\A.*</think(?:ing)?>", re.S)
STARTS = re.compile(r"(?:async )?def |class |@\w|import \w|from [\w.]+ import ")
GOES_ON = re.compile(
    r"(?:async )?def |class |@\w|import \w|from [\w.]+ import |if |elif |else:|for |while |try:|except|finally:|with "
    r"|assert |return |[A-Za-z_][\w.\[\], ]* ?[-+*/|&]?= |[A-Za-z_][\w.]*\(|[#)\]}]|\"\"\"|'''"
)


def extract_code(answer: str, entry_point: str, starter: str = "") -> str:
    """The code of an answer, ready to be run; "" where it holds none.

    Of several blocks the last one that defines the function counts: models correct themselves. What it uses of the
    other blocks comes before it. Where an answer repeats the function, the starter gives only what stands before its
    head (imports, helpers).

    Args:
        answer: the model's text.
        entry_point: the name of the function that was asked for.
        starter: code that the answer goes on with, or repeats; "" where there is none.
    """
    text = MARKS.sub("", THOUGHTS.sub("", answer.replace("\r\n", "\n")))
    blocks = _blocks(text, entry_point, starter)
    for block in reversed(blocks):
        if _defines(block, entry_point):
            return _preamble(starter, entry_point) + _helpers(block, blocks) + block
    for block in reversed(blocks):
        if starter and parsed(whole := starter + _body(block, starter)) is not None:
            return whole
    return next((block for block in reversed(blocks) if block.strip()), "")


def parsed(code: str) -> ast.Module | None:
    """The syntax tree of a text; None where it is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange escapes in somebody's strings
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _blocks(text: str, entry_point: str, starter: str) -> list[str]:
    """The pieces of a text that may be code, in order."""
    found = list(FENCE.finditer(text))
    if not found:
        return [_among_prose(text, entry_point, starter)]
    blocks = [_plain(one["code"] or "", entry_point) for one in found if one["language"].lower() in PYTHON]
    # A prompt may end with an open fence: then the first one that the answer has is the one that closes it.
    before = text[: found[0].start()]
    if not found[0]["language"]:
        inside = _defines(before, entry_point) or (
            starter and parsed(starter + before) is not None and _indented(before)
        )
        if inside:
            return [before]
    return blocks


def _plain(code: str, entry_point: str) -> str:
    """A block without the indentation that it has in a list, and without an interpreter's prompts and results."""
    lines = code.splitlines()
    prompted = [line[4:] for line in lines if line.startswith((">>> ", "... ")) or line in (">>>", "...")]
    if prompted and lines and lines[0].startswith(">>>"):
        return "\n".join(prompted) + "\n"
    # A block that is indented as a whole lies in a list; but a function's body has its indentation by right.
    dedented = textwrap.dedent(code)
    return dedented if _defines(dedented, entry_point) and not _defines(code, entry_point) else code


def _among_prose(text: str, entry_point: str, starter: str) -> str:
    text = _plain(text, entry_point)
    if _defines(text, entry_point):
        return text
    if starter and _indented(text):
        return text
    lines = text.splitlines(keepends=True)
    for first, line in enumerate(lines):
        if STARTS.match(line):
            code = _longest(lines[first:])
            if _defines(code, entry_point):
                return code
    return text if starter or parsed(text) is not None else ""


def _longest(lines: list[str]) -> str:
    """The lines up to where prose begins, and of those as many as parse."""
    end = next((place for place, line in enumerate(lines) if _is_prose(line)), len(lines))
    while end and parsed("".join(lines[:end])) is None:
        end -= 1
    return "".join(lines[:end])


def _is_prose(line: str) -> bool:
    return bool(line.strip()) and not line[0].isspace() and GOES_ON.match(line) is None


def _body(text: str, starter: str) -> str:
    """A function's body, up to the first line that no longer belongs to it, as far as it parses after the starter."""
    lines = (text if text.startswith((" ", "\t", "\n")) or not starter.endswith("\n") else "    " + text).splitlines(
        True
    )
    stop = next((place for place, line in enumerate(lines) if place and _unindented(line)), len(lines))
    # Helpers that follow are kept where all of it is sound.
    if any(STARTS.match(line) for line in lines[stop:]):
        longer = next((at for at, line in enumerate(lines) if at and _is_prose(line)), len(lines))
        if parsed(starter + "".join(lines[:longer])) is not None:
            return "".join(lines[:longer])
    while stop > 1 and parsed(starter + "".join(lines[:stop])) is None:
        stop -= 1
    return "".join(lines[:stop])


def _unindented(line: str) -> bool:
    return bool(line.strip()) and not line[0].isspace()


def _indented(text: str) -> bool:
    first = next((line for line in text.splitlines() if line.strip()), "")
    return first[:1].isspace()


def _top_level(code: str) -> dict[str, ast.stmt]:
    tree = parsed(code)
    found: dict[str, ast.stmt] = {}
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {one.id: node for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0]: node for alias in node.names}
    return found


def _defines(code: str, name: str) -> bool:
    return name in _top_level(code)


def _helpers(block: str, blocks: list[str]) -> str:
    """What other blocks define at their top level and this one uses without defining it."""
    tree = parsed(block)
    here = _top_level(block)
    missing = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - here.keys() if tree else set[str]()
    kept: dict[int, str] = {}
    for other in blocks:
        found = _top_level(other)
        if other is block:
            continue
        waiting = [name for name in missing if name in found]
        while waiting:
            node = found[waiting.pop()]
            if id(node) not in kept:
                kept[id(node)] = ast.unparse(node)
                waiting += [one.id for one in ast.walk(node) if isinstance(one, ast.Name) and one.id in found]
    return "".join(f"{text}\n\n" for text in kept.values())


def _preamble(starter: str, entry_point: str) -> str:
    head = re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", starter, re.M)
    return starter[: head.start()] if head else ""
