"""The command line: names, arguments, output. What it does is done below.

Exit codes: 0 go or clean, 1 no-go or findings, 2 inconclusive, 3 usage error, 4 a stage failed.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import typer
from typer.main import get_command

from stepwell.cli import analyze, compare, data, merging, runs, sandbox, scale, sft
from stepwell.errors import StepwellError

USAGE_ERROR, FAILED = 3, 4

app = typer.Typer(
    help="Gated experiments on language models that think, remember or read in vectors instead of tokens.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
runs.add_to(app)
scale.add_to(app)
compare.add_to(app)
analyze.add_to(app)
data.add_to(app)
sandbox.add_to(app)
sft.add_to(app)
merging.add_to(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. An error the user can meet is one message on stderr, without a traceback."""
    try:
        code = get_command(app).main(args=list(arguments), prog_name="stepwell", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except StepwellError as error:
        print(f"stepwell: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("stepwell: interrupted", file=sys.stderr)
        return FAILED
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"stepwell: {place}{error.strerror or error}", file=sys.stderr)
        return USAGE_ERROR
    except Exception as error:
        # typer's own click, public or bundled: its usage errors can print themselves, and would exit with 2.
        if show := getattr(error, "show", None):
            show()
            return USAGE_ERROR
        traceback.print_exc()
        print("stepwell: this is a fault in Stepwell itself; please report it.", file=sys.stderr)
        return FAILED


__all__ = ["app", "main", "run"]
