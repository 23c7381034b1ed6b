"""Programs in the sandbox: how values cross to their tests, and what each ending is called."""

from __future__ import annotations

import math
import random
import struct
from array import array
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from fractions import Fraction

import pytest

from sandbox_means import need_sandbox
from stepwell.sandbox import Limits, Outcome, Program, execute
from stepwell.sandbox.guest.wire import decode, encode
from stepwell.sandbox.seccomp import REFUSED, filter_program

QUICK = Limits(seconds=20)


def outcome(code: str, tests: str = "assert f() == 1\n", limits: Limits = QUICK, entry_point: str = "") -> Outcome:
    need_sandbox()
    return execute([Program(id="a", code=code, tests=tests, entry_point=entry_point)], limits)[0]


VALUES_CODE = """
import math
from fractions import Fraction
class Node:
    def __init__(self, value): self.value, self.left = value, None
def many(node): return (node.value, node.left.value, {1, 2}, {1: (2,)}, 10 ** 2000, iter([1, 2]), math.inf, 1j)
def appended(values): values.append(4)
def counted(text): return {letter: text.count(letter) for letter in text}
def divided(): return 1 / 0
def halves(): return Fraction(1, 2)
def without(values, kind): return [value for value in values if type(value) is not kind]
def sum(a, b): return 'mine'
"""
VALUES_TESTS = """
node = Node(1)
node.left = Node(2)
found = many(node)
assert found[:5] == (1, 2, {1, 2}, {1: (2,)}, 10 ** 2000)
assert list(found[5]) == [1, 2]
assert found[6:] == (math.inf, 1j)
values = [1]
assert appended(values) is None and values == [1, 4]
assert counted('aab') == {'a': 2, 'b': 1}
assert halves() == 0.5
assert without((1, 2.0, 'a'), int) == [2.0, 'a']
assert sum([1, 2]) == 3
try:
    divided()
except ZeroDivisionError as error:
    assert 'division' in str(error)
else:
    assert False
"""


def test_values_cross_and_the_program_does_not_speak_for_builtins():
    found = outcome(VALUES_CODE, VALUES_TESTS)
    assert (found.status, found.right, found.detail) == ("passed", True, "")


def test_the_entry_point_may_have_the_name_of_a_builtin():
    assert outcome("def sum(a, b):\n    return a - b\n", "assert sum(3, 1) == 2\n", entry_point="sum").right


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        ("def f(): return 2", "failed", "AssertionError (line 1 of the tests: assert f() == 1)"),
        ("def f(: pass", "failed", "SyntaxError: "),
        ("def f(): return g()", "failed", "NameError: name 'g' is not defined"),
        ("def g(): return 1", "failed", "NameError: name 'f' is not defined"),
        ("import os\nos._exit(3)", "failed", "the program left with code 3 before its tests had ended"),
        ("import os\ndef f(): os.kill(os.getpid(), 11)", "failed", "the program was ended by signal 11"),
        ("def f(): return input()", "failed", "EOFError"),
        ("def f():\n    while True: pass", "timeout", "not done after 1 s"),
        ("while True: pass", "timeout", "not done after 1 s"),
        ("def f(): return bytearray(1 << 40)", "memory", "MemoryError"),
        ("def f(): raise MemoryError", "memory", "MemoryError"),
    ],
)
def test_each_ending_has_its_name(code: str, status: str, detail: str):
    found = outcome(code, limits=Limits(seconds=1) if status == "timeout" else QUICK)
    assert found.status == status and found.detail.startswith(detail)
    assert found.right is (False if status == "failed" else None)


def test_tests_that_cannot_cross_are_no_fault_of_the_program():
    found = outcome("def f(x): return 1", "assert f(lambda: 1) == 1\n")
    assert found.status == "sandbox-error"
    assert found.detail.startswith("CannotCross: the tests hand the program a function, which is no plain value")


def test_tests_that_catch_everything_do_not_hide_a_program_that_ended():
    found = outcome("import os\ndef f(): os._exit(0)", "try:\n    f()\nexcept:\n    pass\n")
    assert found.status == "failed"


def test_output_is_kept_and_outcomes_come_in_order():
    need_sandbox()
    programs = [
        Program(id=str(n), code=f"def f():\n    print('here', {n})\n    return {n}", tests=f"assert f() == {n}")
        for n in range(4)
    ]
    found = execute(programs, QUICK, workers=2)
    assert [(one.id, one.status, one.output) for one in found] == [(str(n), "passed", f"here {n}\n") for n in range(4)]
    assert execute([]) == []


def there_and_back(value: object) -> object:
    return decode(encode(value, lambda one: pytest.fail(f"{one!r} is plain")), lambda n: n, lambda name: name)


def drawn(source: random.Random, depth: int) -> object:
    leaves = [
        None, True, source.randint(-(10**40), 10**40), source.gauss(0, 1e9), -0.0, math.inf, "ä\ud800\n", b"\0\xff",
        complex(1, -2), range(1, 9, 3), Fraction(1, 3), Decimal("1.10"), 1 << 5000, array("d", [1.5]), int,
    ]  # fmt: skip
    if not depth:
        return source.choice(leaves)
    inner = [drawn(source, depth - 1) for _ in range(source.randint(0, 3))]
    kind = source.choice([list, tuple, deque, dict, set])
    if kind is dict:
        return {repr(key): value for key, value in zip(inner, inner, strict=True)}
    return {repr(one) for one in inner[:1]} if kind is set else kind(inner)


@pytest.mark.parametrize("seed", range(50))
def test_plain_values_come_back_as_they_were(seed: int):
    value = drawn(random.Random(seed), 3)
    back = there_and_back(value)
    assert repr(back) == repr(value)


def test_a_subclass_crosses_as_what_it_holds():
    class Agreeable(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    back = there_and_back([Agreeable(3), Counter("aab"), OrderedDict(a=1)])
    assert back == [3, {"a": 2, "b": 1}, {"a": 1}] and [type(one) for one in back] == [int, dict, dict]  # pyright: ignore


@pytest.mark.parametrize("wrong", [{}, {"a": 1, "b": 2}, {"zzz": 1}, {"T": "open"}, {"r": [1, 2, 0]}])
def test_what_is_no_value_is_refused(wrong: object):
    with pytest.raises((ValueError, TypeError)):
        decode(wrong, lambda number: number, lambda name: name)


def interpreted(program: bytes, number: int, arguments: tuple[int, ...] = (0, 0), arch: int = 0xC000003E) -> int:
    """A second interpreter of classic BPF, for the instructions that the filter uses."""
    data = {0: number, 4: arch, **{16 + 8 * place: value & 0xFFFFFFFF for place, value in enumerate(arguments)}}
    steps = list(struct.iter_unpack("<HBBI", program))
    at = held = 0
    while True:
        code, yes, no, k = steps[at]
        if code == 0x06:
            return k
        if code == 0x20:
            held = data[k]
        else:
            met = {0x15: held == k, 0x35: held >= k, 0x45: bool(held & k)}[code]
            at += yes if met else no
        at += 1


def test_the_filter_refuses_what_it_names_and_allows_the_rest():
    rules, allow, refuse, missing = filter_program("x86_64"), 0x7FFF0000, 0x50001, 0x50026
    assert rules is not None and len(rules) // 8 < 4096
    assert all(interpreted(rules, pair[0]) == refuse for pair in REFUSED.values())
    read, fork, ioctl, socket = 0, 57, 16, 41
    assert [interpreted(rules, number) for number in (read, fork, 257, 231)] == [allow] * 4
    assert interpreted(rules, 435) == interpreted(rules, 1000) == interpreted(rules, 0x40000000) == missing
    assert interpreted(rules, 56, (0x11, 0)) == allow and interpreted(rules, 56, (0x10000011, 0)) == refuse
    assert interpreted(rules, socket, (1, 1)) == allow and interpreted(rules, socket, (2, 1)) == 0x5000D
    assert interpreted(rules, ioctl, (0, 0x5401)) == allow and interpreted(rules, ioctl, (0, 0x5412)) == refuse
    assert interpreted(rules, ioctl, (0, 0x541C)) == refuse
    assert interpreted(rules, read, arch=0x40000003) == 0x80000000
    assert filter_program("riscv64") is None and filter_program("aarch64") is not None


def test_limits_are_checked():
    with pytest.raises(ValueError, match="greater than 0"):
        Limits(seconds=0)
