"""JSON that can be passed on: its numbers are finite, and every text of it can be written as UTF-8."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def read_strictly(text: str) -> Any:
    """Return a JSON document. Raises JSONDecodeError for what is no such JSON."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        if "\\ud" in text or "\\uD" in text:
            # Half a character, as an escape: nothing could encode it.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from error
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
