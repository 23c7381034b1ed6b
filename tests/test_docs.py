"""What the documentation shows is true: its commands parse, its links lead somewhere, its Python and YAML load."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# What stands for something of the reader's own in a command: FILE, RUN, MODEL_ID.
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_]+$")


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def shell_lines(text: str) -> Iterator[str]:
    """The commands of all ```sh blocks, continued lines joined, comments dropped."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield shlex.join(words)


def commands(program: str) -> list[tuple[str, str]]:
    """(page, command) of every command of a program that any page shows."""
    return [
        (str(page.relative_to(ROOT)), line)
        for page in PAGES
        for line in shell_lines(page.read_text(encoding="utf-8"))
        if shlex.split(line)[0] == program
    ]


def root_command() -> Any:
    return typer.main.get_command(importlib.import_module("stepwell.cli").app)


def why_it_does_not_parse(line: str, root: Any = None) -> str | None:
    """None when the command line knows the command, its options and its number of arguments; else what it says.

    Typer brings click under a name of its own, or uses the package, by version; so commands and errors are known here
    by what they can do: a group has commands, a complaint can format itself.
    """
    command = root or root_command()
    _, *words = shlex.split(line)
    context = command.context_class(command, info_name="stepwell")
    while hasattr(command, "commands"):
        if not words:
            return "names a group of commands, and none of them"
        found = command.get_command(context, words[0])
        if found is None:
            return f"no such command: {words[0]}"
        command, words = found, words[1:]
        context = command.context_class(command, info_name=command.name, parent=context)
    try:
        command.parse_args(context, list(words))
    except Exception as error:
        says = getattr(error, "format_message", None)
        if says is None:
            raise
        # A file of the reader's need not exist here; any other complaint is about what the page wrote.
        about_a_value = type(error).__name__ == "BadParameter" and any(map(PLACEHOLDER.match, words))
        return None if about_a_value else says()
    return None


def leaves(command: Any, path: tuple[str, ...] = ("stepwell",)) -> Iterator[tuple[str, ...]]:
    """Every command that does something, as the words one types."""
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            if not child.hidden:
                yield from leaves(child, (*path, name))
    else:
        yield path


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page to files or headings that are not there. Links to the web are not followed."""
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def missing_names(code: str) -> list[str]:
    """Names that a block imports from stepwell and that stepwell does not have."""
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stepwell":
            module = importlib.import_module(node.module or "")
            missing += [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
    return missing


@pytest.mark.parametrize(("page", "line"), commands("stepwell"))
def test_every_command_shown_parses(page: str, line: str):
    assert why_it_does_not_parse(line) is None, f"{page}: {line}"


@pytest.mark.parametrize(
    ("page", "line"), [(page, line) for page, line in commands("stepwell") if re.match(r"stepwell (plan|run) ", line)]
)
def test_every_plan_shown_loads_with_its_rung_and_overrides(page: str, line: str):
    from stepwell.plan import load_plan

    _, _, name, *words = shlex.split(line)
    overrides = [word for word in words if re.match(r"[a-z][\w.]*=", word) and "override-gate" not in word]
    gates = [words[at + 1].partition("=") for at, word in enumerate(words) if word == "--override-gate"]
    overrides = [word for word in overrides if word not in {"".join(gate) for gate in gates}]
    plan = load_plan(name, rung=words[words.index("--rung") + 1], overrides=overrides)
    assert {gate for gate, _, _ in gates} <= {gate.name for gate in plan.gates}, f"{page}: {line}"


def test_the_readme_shows_the_commands_and_the_demo():
    assert any(page == "README.md" for page, _ in commands("stepwell"))
    assert [line for page, line in commands("make") if page == "README.md"] == ["make demo", "make test"]


def short_lines() -> list[str]:
    """README's commands but those that run a whole rung: `make engines` runs these, made small."""
    return [line for page, line in commands("stepwell") if page == "README.md" and " run " not in line]


@pytest.mark.parametrize("line", short_lines())
def test_the_readmes_commands_do_what_they_say(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Callable[[str], Path]
):
    from stepwell.cli import run

    monkeypatch.syspath_prepend(ROOT / "tests" / "merging")
    monkeypatch.chdir(tmp_path)
    if "FILE" in line:
        (tmp_path / "FILE").symlink_to(shared_data("prosqa/valid.json"))
    if "ADAPTER" in line:
        models: Any = importlib.import_module("merge_models")
        models.adapter_on(models.saved_base(tmp_path / "BASE"), tmp_path / "ADAPTER", target_modules=["q_proj"])
    assert run(shlex.split(line)[1:]) == 0
    assert "OUT" not in line or (tmp_path / "OUT" / "model.safetensors").exists()


def test_every_make_target_shown_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = {line.split()[1] for _, line in commands("make")} | set(re.findall(r"`make ([a-z]+)`", pages))
    assert shown <= targets


def test_every_command_has_its_place_in_the_reference():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    missing = [" ".join(path) for path in leaves(root_command()) if f"`{' '.join(path)}" not in page]
    assert not missing, f"docs/cli.md has no heading for {missing}"


def test_every_finding_is_explained():
    from stepwell.audit.checks import CODES

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [code for code, meaning in CODES.items() if f"| `{code}` | {meaning} |" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_shown_compiles_and_imports_what_exists(page: Path):
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        compile(block, str(page), "exec")
        assert missing_names(block) == []


def test_the_readme_shows_python():
    assert len(blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")) == 1


def test_the_plan_shown_is_sound(tmp_path: Path):
    from stepwell.plan import jobs, load_plan, rungs_of

    page = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
    (text,) = [block for block in blocks(page, "yaml") if block.startswith("study:")]
    path = tmp_path / "widths.yaml"
    path.write_text(text, encoding="utf-8")
    assert rungs_of(path)
    for rung in rungs_of(path):
        assert jobs(load_plan(path, rung=rung))


def test_the_error_shown_is_the_error_printed(tmp_path: Path):
    from stepwell.errors import StepwellError
    from stepwell.plan import load_plan

    page = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
    (text,) = [block for block in blocks(page, "yaml") if block.startswith("study:")]
    (shown,) = blocks(page, "text")
    path = tmp_path / "widths.yaml"
    path.write_text(text.replace("lr: 2e-3", "lrr: 2e-3"), encoding="utf-8")
    with pytest.raises(StepwellError) as caught:
        load_plan(path, rung="small")
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(shown.strip().removesuffix(", ..."))


def test_every_key_of_a_plan_is_described():
    from stepwell.plan import Criterion, GateSpec, Plan, StageSpec

    page = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
    for model in (Plan, StageSpec, GateSpec, Criterion):
        missing = {name for name in model.model_fields if f"`{name}`" not in page} - {"rung"}
        assert not missing, f"docs/plans.md does not describe {sorted(missing)} of {model.__name__}"


def test_the_documentation_builds(tmp_path: Path):
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "Stepwell" in index
    fetched = re.findall(r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//|<link[^>]*stylesheet[^>]*//", index)
    assert not fetched, "the built pages fetch from the network"


# The checks above see a planted fault, and are silent on what is right.


def planted_root() -> Any:
    app = typer.Typer()

    @app.command()
    def run(plan: str, rung: str = "demo") -> None: ...

    @app.command()
    def show(file: Path) -> None: ...

    return typer.main.get_command(app)


@pytest.mark.parametrize("line", ["stepwell run thoughts --rung demo", "stepwell show FILE"])
def test_a_right_command_parses(line: str):
    assert why_it_does_not_parse(line, planted_root()) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("stepwell walk", "no such command: walk"),
        ("stepwell", "names a group of commands, and none of them"),
        ("stepwell run thoughts --rang demo", "--rang"),
        ("stepwell run", "Missing argument"),
        ("stepwell show FILE OTHER", "unexpected extra argument"),
    ],
)
def test_a_wrong_command_is_found(line: str, says: str):
    assert says in str(why_it_does_not_parse(line, planted_root()))


def test_a_broken_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    text = "# A page\n\n[a](page.md) [b](page.md#a-page) [c](#a-page) [d](gone.md) [e](#gone) [f](https://example.org)"
    page.write_text(text, encoding="utf-8")
    assert broken_links(page, text) == ["gone.md", "#gone"]


def test_a_missing_name_is_found():
    assert missing_names("from stepwell.errors import StepwellError, Nothing") == ["stepwell.errors.Nothing"]


def test_shell_lines_are_read_as_a_shell_reads_them():
    text = "```sh\n# a comment\nstepwell run x \\\n  --rung y  # why\n\nls\n```\n```text\nstepwell no\n```\n"
    assert list(shell_lines(text)) == ["stepwell run x --rung y", "ls"]
