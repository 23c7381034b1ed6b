"""`import stepwell` and `stepwell --help`, each in a new Python. Aims: under 0.3 s and under 1 s; torch is not loaded.

Compared: what is loaded (no torch, transformers, scipy or plotly), and that the help is printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from statistics import median

import common

HEAVY = ("torch", "transformers", "scipy", "plotly")
LOADED = f"import stepwell, sys; print([name for name in {HEAVY} if name in sys.modules])"


def python(*arguments: str) -> str:
    """The output of a new Python with this checkout's source on its path."""
    paths = os.pathsep.join(filter(None, (str(common.SOURCE), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths}
    ).stdout


def main(arguments: Sequence[str] | None = None) -> None:
    given = common.parser(__doc__).parse_args(arguments)
    common.header("bench_import", given, arguments)
    repeats = given.pairs or (1 if given.quick else 9)
    loaded = python("-c", LOADED).strip()
    common.same("loaded by `import stepwell`", loaded == "[]", f"heavy packages: {loaded}")
    shown = "Usage: stepwell" in python("-m", "stepwell", "--help")
    common.same("`stepwell --help`", shown, "prints its usage" if shown else "prints no usage")
    for name, call, bound in (
        ("python, nothing imported", ("-c", "pass"), None),
        ("import stepwell", ("-c", "import stepwell"), 0.3),
        ("stepwell --help", ("-m", "stepwell", "--help"), 1.0),
    ):
        seconds = [common.timed(lambda call=call: python(*call), given.clock) for _ in range(repeats)]
        print(f"  {name}: median {median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f}, {repeats} times")
        if bound is not None:
            common.aim(f"seconds of {name}", median(seconds), "<=", bound, meant=not given.quick)


if __name__ == "__main__":
    main()
