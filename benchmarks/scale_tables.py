"""No benchmark: runs every `stepwell scale` that docs/scale.md shows, and puts what it prints below the command."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
BLOCK = re.compile(r"^```text\n\$ stepwell ([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Write the page anew."""
    PAGE.write_text(BLOCK.sub(_printed, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def _printed(block: re.Match[str]) -> str:
    command = [sys.executable, "-m", "stepwell", *shlex.split(block[1])]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    return "\n".join(["```text", f"$ stepwell {block[1]}", *lines, "```"])


if __name__ == "__main__":
    main()
