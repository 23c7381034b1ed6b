"""The rules that hold for all of src: imports point downwards, one module knows transformers, nothing runs text."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"

# From the bottom to the top. A module may import from its own layer and from those below, never from above, and
# never in a circle. A new module has no place until it is named here.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "backbone",
        "chat",
        "endpoint",
        "localchat",
        "small",
        "decode",
        "memory",
        "vllm_engine",
        "models",
        "checkpoints",
        "recipe",
        "randomness",
        "ranks",
        "sharding",
        "devices",
        "calibrate",
        "stats",
        "shapes",
        "fingerprint",
        "sandbox",
        "spec",
        "errors",
    ),
    ("latents", "objectives", "losses", "adapt", "merging", "tasks", "similarity"),
    (
        "train",
        "fitting",
        "answering",
        "writing",
        "answers",
        "evaluate",
        "analysis",
        "audit",
        "monitor",
        "stage",
        "track",
        "sft",
    ),
    ("plan", "gate", "grading", "store", "kinds", "estimate", "scale", "coconut"),
    ("engine", "studies"),
    ("report", "runner", "compare"),
    ("cli", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# (importing module, imported module) pairs that may point upwards, inside a function, each with its reason.
ALLOWED_UPWARDS = {
    ("stepwell.plan.check", "stepwell.studies"): "importing the shipped studies registers their kinds",
}

BARRED_MODULES = frozenset({"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
PICKLE_ERROR = "UnpicklingError"
HEAVY = ("torch", "transformers", "scipy", "plotly", "numpy")


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement: the module it names, its line, and whether it runs when the importing module is loaded."""

    target: str
    line: int
    at_load: bool


def module_name(path: Path, root: Path = SOURCE) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def _guards_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.Module, module: str, *, package: bool) -> Iterator[Import]:
    """Every import of a module, those inside functions too; those for type checkers only do not run at load."""

    def walk(node: ast.AST, at_load: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(target=alias.name, line=child.lineno, at_load=at_load) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parents = module.split(".")
                    parents = parents[: len(parents) - child.level + package]
                    base = ".".join([*parents, base] if base else parents)
                # `from a import b` may name the module a.b: both are kept, resolve() drops what is no module.
                yield Import(target=base, line=child.lineno, at_load=at_load)
                for alias in child.names:
                    yield Import(target=f"{base}.{alias.name}", line=child.lineno, at_load=at_load)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, at_load and not inside and not _guards_types(child))

    yield from walk(tree, True)


def layer(module: str) -> str:
    """The name that LAYERS knows: the part after `stepwell.`."""
    return [*module.split("."), ""][1]


def upwards(module: str, found: Iterator[Import] | list[Import]) -> list[str]:
    """What breaks the order of the layers among a module's imports."""
    faults = []
    for item in found:
        if item.target.split(".")[0] != "stepwell" or not {layer(item.target), layer(module)} <= RANK.keys():
            continue
        allowed = not item.at_load and (module, item.target) in ALLOWED_UPWARDS
        if RANK[layer(item.target)] > RANK[layer(module)] and not allowed:
            faults.append(f"{module}:{item.line} imports {item.target}, which is of a higher layer")
    return faults


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Circles among modules that import one another while they are being loaded."""
    done: set[str] = set()
    found: list[str] = []

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
    return found


def dangers(tree: ast.Module) -> list[str]:
    """Calls and imports that could run what a file says, and switches that make code behave otherwise under test."""
    faults = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            faults += [f"{line}: imports {name}" for name in _barred(node)]
        elif isinstance(node, ast.Call):
            faults += [f"{line}: {fault}" for fault in _dangerous_call(node)]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr != PICKLE_ERROR:
            faults.append(f"{line}: uses pickle.{node.attr}")
        elif isinstance(node, ast.arg | ast.Name | ast.Attribute):
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else node.attr
            if name.lower() in {"testing", "is_testing", "is_test", "test_mode", "under_test"}:
                faults.append(f"{line}: a switch for tests: {name}")
        elif isinstance(node, ast.Constant) and node.value == "PYTEST_CURRENT_TEST":
            faults.append(f"{line}: asks whether pytest is running")
    return faults


def _barred(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The barred modules that a statement brings in. The name of pickle's error is no danger, and torch raises it."""
    if isinstance(node, ast.Import):
        named = [alias.name for alias in node.names if (alias.name, alias.asname) != ("pickle", None)]
        return [name for name in named if name.split(".")[0] in BARRED_MODULES]
    only_the_error = node.module == "pickle" and [alias.name for alias in node.names] == [PICKLE_ERROR]
    return [node.module] if node.module and node.module.split(".")[0] in BARRED_MODULES and not only_the_error else []


def _dangerous_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}

    def is_true(name: str) -> bool:
        value = keywords.get(name)
        return isinstance(value, ast.Constant) and value.value is True

    if called in {"eval", "exec", "compile", "builtins.eval", "builtins.exec"}:
        yield f"calls {called}"
    if called == "torch.load" and not is_true("weights_only"):
        yield "calls torch.load without weights_only=True"
    if called.endswith(("yaml.unsafe_load", "yaml.full_load")):
        yield f"calls {called}"
    for name in ("allow_pickle", "trust_remote_code"):
        value = keywords.get(name)
        if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
            yield f"calls {called} with {name}"
    if is_true("shell"):
        yield f"calls {called} with shell=True"


@cache
def parsed() -> dict[str, tuple[ast.Module, bool]]:
    return {
        name: (ast.parse(path.read_text(encoding="utf-8"), filename=str(path)), path.name == "__init__.py")
        for name, path in sources().items()
    }


def test_every_module_has_a_layer():
    homeless = {layer(name) for name in sources()} - set(RANK) - {""}
    assert not homeless, f"name these modules in LAYERS of tests/test_layers.py: {sorted(homeless)}"


def test_imports_point_downwards():
    faults = []
    for name, (tree, package) in parsed().items():
        faults += upwards(name, imports(tree, name, package=package))
    assert not faults, "\n".join(faults)


def test_no_circles_while_loading():
    trees = parsed()
    graph = {
        name: {item.target for item in imports(tree, name, package=package) if item.at_load and item.target in trees}
        - {name}
        for name, (tree, package) in trees.items()
    }
    # `from stepwell import x` names the package as well as x; the package itself is no step of a circle.
    graph = {name: targets - {"stepwell"} for name, targets in graph.items() if name != "stepwell"}
    assert not circles(graph)


def test_only_the_backbone_knows_transformers():
    for name, (tree, package) in parsed().items():
        found = [item.line for item in imports(tree, name, package=package) if item.target.startswith("transformers")]
        assert not found or name == "stepwell.backbone", f"{name}:{found[0]} imports transformers"


def test_nothing_runs_what_a_file_says():
    faults = [f"{name}:{fault}" for name, (tree, _) in parsed().items() for fault in dangers(tree)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("module", ["stepwell", "stepwell.cli", "stepwell.plan", "stepwell.studies", "stepwell.runner"])
def test_loading_brings_nothing_heavy(module: str):
    code = f"import {module}, sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# The rules above see a planted fault, and are silent on what is allowed.


def found_in(code: str, module: str = "stepwell.stats") -> list[Import]:
    return list(imports(ast.parse(code), module, package=False))


@pytest.mark.parametrize(
    "code",
    [
        "import stepwell.cli",
        "from stepwell import runner",
        "from stepwell.plan import Plan",
        "def f():\n    from stepwell.train import train",
        "from .gate import decide",
        "from . import plan",
    ],
)
def test_an_import_upwards_is_found(code: str):
    faults = upwards("stepwell.stats", found_in(code))
    assert len(set(faults)) >= 1
    assert "which is of a higher layer" in faults[0]


@pytest.mark.parametrize("code", ["from stepwell.errors import StepwellError", "import numpy", "from . import shapes"])
def test_an_import_downwards_is_no_fault(code: str):
    assert upwards("stepwell.stats", found_in(code)) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a -> b -> c -> a"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_an_import_inside_a_function_does_not_run_at_load():
    loads = {item.target: item.at_load for item in found_in("import json\ndef f():\n    import torch")}
    assert loads == {"json": True, "torch": False}


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import pickle as p", "1: imports pickle"),
        ("import pickle\npickle.loads(data)", "2: uses pickle.loads"),
        ("from pickle import loads", "1: imports pickle"),
        ("from dill import loads", "1: imports dill"),
        ("eval(text)", "1: calls eval"),
        ("exec(text)", "1: calls exec"),
        ("torch.load(path)", "1: calls torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "1: calls torch.load without weights_only=True"),
        ("np.load(path, allow_pickle=True)", "1: calls np.load with allow_pickle"),
        ("AutoModel.from_pretrained(x, trust_remote_code=flag)", "1: calls AutoModel.from_pretrained with"),
        ("subprocess.run(line, shell=True)", "1: calls subprocess.run with shell=True"),
        ("def run(testing=False): ...", "1: a switch for tests: testing"),
        ("os.environ.get('PYTEST_CURRENT_TEST')", "1: asks whether pytest is running"),
    ],
)
def test_a_danger_is_found(code: str, fault: str):
    assert any(found.startswith(fault) for found in dangers(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["model.eval()", "torch.load(p, weights_only=True)", "re.compile(x)", "yaml.load(t, L)"]
)
def test_what_is_allowed_is_no_danger(code: str):
    assert dangers(ast.parse(code)) == []
