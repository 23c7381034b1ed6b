"""The code is found in an answer, whatever its form: bodies, functions, blocks, prose around them."""

from __future__ import annotations

import ast

import pytest

from stepwell.tasks.code import CodeProblem, load_humaneval, load_mbpp
from stepwell.tasks.code_answers import extract_code, parsed


def forms(problem: CodeProblem) -> dict[str, str]:
    whole, name = problem.starter + problem.reference, problem.entry_point
    found = {
        "body, or function": problem.reference,
        "function": whole,
        "fence": f"Sure! Here it is:\n\n```python\n{whole}\n```\n\nThis works because `x` is small.\n",
        "fence without language": f"```\n{whole}\n```",
        "tildes": f"~~~\n{whole}\n~~~",
        "open fence": f"Here:\n```python\n{whole}",
        "fence that the prompt opened": f"{whole}\n```\nExplanation: it returns the value.",
        "corrected": f"```python\ndef {name}(): return 1\n```\nWait:\n```py\n{whole}\n```\n```bash\npython x.py\n```",
        "prose": f"Here is the solution:\n\n{whole}\n\nThis solution runs in O(n) time.",
        "thoughts": f"<think>maybe ```python\ndef {name}(): pass\n```</think>\n```python\n{whole}\n```",
        "marks": f"[BEGIN]\n{whole}\n[DONE]",
        "line ends": f"```python\n{whole}\n```".replace("\n", "\r\n"),
    }
    if problem.starter:
        body = problem.reference
        found |= {
            "body and prose": f"{body}\n\nThis function works.\n",
            "body in a fence": f"```python\n{body}\n```",
            "body in a fence that the prompt opened": f"{body}\n```\nDone",
            "body without its first spaces": body.lstrip(" "),
            "body and a function cut off": f"{body}\n\ndef other(x):\n    return x +",
            "body and a main block cut off": f"{body}\n\nif __name__ == '__main__':\n    print(",
        }
    return found


def last_definition(code: str, name: str) -> str | None:
    tree = parsed(code)
    found = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == name] if tree else []
    return ast.dump(found[-1]) if found else None


def test_all_forms_of_real_answers_give_the_function(shared_data):
    problems = load_humaneval(shared_data("code/HumanEval.jsonl.gz"))[::4]
    problems += load_mbpp(shared_data("code/mbpp.jsonl"))[::10]
    for problem in problems:
        wanted = last_definition(problem.starter + problem.reference, problem.entry_point)
        assert wanted is not None
        for form, answer in forms(problem).items():
            code = extract_code(answer, problem.entry_point, problem.starter)
            assert last_definition(code, problem.entry_point) == wanted, (problem.id, form)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("", ""),
        ("I cannot do that.", ""),
        ("- First:\n\n  ```python\n  def f(x):\n      return x\n  ```\n", "def f(x):\n    return x\n"),
        (">>> def f(x):\n...     return x\n...\n", "def f(x):\n    return x\n\n"),
        ("```pycon\n>>> def f(x):\n...     return x\n...\n>>> f(1)\n1\n```", "def f(x):\n    return x\n\nf(1)\n"),
        ("```python\nimport math\n```\nthen\n```python\ndef f(x):\n    return math.pi\n```", None),
        ("```python\ndef g(x):\n    return x\n```\nand\n```python\ndef f(x):\n    return g(x)\n```", None),
        ("```json\n{}\n```\n```python\nprint(1)\n```", "print(1)\n"),
    ],
)
def test_the_code_of_an_answer(answer: str, code: str | None):
    found = extract_code(answer, "f")
    if code is not None:
        assert found == code
    else:
        assert found.endswith("return math.pi\n") or found.endswith("return g(x)\n")
        assert found.startswith(("import math\n\n", "def g(x):\n    return x\n\n"))


def test_what_stands_before_the_head_is_given_to_a_function_that_is_repeated():
    starter = "from typing import List\n\ndef poly(x):\n    return x\n\ndef f(x: List) -> int:\n    '''Doc.'''\n"
    found = extract_code("```python\ndef f(x: List) -> int:\n    return poly(x)\n```", "f", starter)
    assert found.startswith("from typing import List\n\ndef poly(x):\n    return x\n\ndef f(x: List)")
    assert found.count("def f(") == 1
