"""What is checked at run time in tests, through jaxtyping's import hook: shapes and dtypes of arrays, and nothing else.

The other annotations are the type checker's; what they say is not always an object that a value can be held against.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from beartype import beartype

ARRAY = re.compile(r"\b(Float|Int|Bool|Ids|Positions|Embeds|Mask|Hidden|States|Logits|KeyValue)\b")


def arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations of arrays checked at each call."""
    given = function.__annotations__.items()
    function.__annotations__ = {name: hint for name, hint in given if ARRAY.search(str(hint))}
    return beartype(function) if function.__annotations__ else function
