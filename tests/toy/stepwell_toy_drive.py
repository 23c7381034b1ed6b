"""Runs a plan file as the command line would: python -m stepwell_toy_drive PLAN RUN."""

from __future__ import annotations

import sys
from pathlib import Path

from stepwell.errors import StepwellError
from stepwell.plan import load_plan
from stepwell.runner import run


def main() -> int:
    plan, folder = sys.argv[1:]
    try:
        result = run(load_plan(Path(plan)), folder)
    except StepwellError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(result.decision)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
