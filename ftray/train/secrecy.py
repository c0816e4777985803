"""Which variables of a process nobody may see: a submitted job's secrets (`submit/sealed.py`), tokens and keys.

What Ray is told as the environment of a worker is shown to everybody who may list actors. Tokens and keys travel with
the work instead, which is shown to nobody, and are set where it begins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SECRET_NAMES = "FTRAY_SECRET_NAMES"
"""Environment of a process that has secrets: their names."""


SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL", "HEADERS")
"""Parts of the names of variables whose values are nobody's business."""


class Secrets:
    """Variables for another process; it shows their names only."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self._values))})"

    @property
    def names(self) -> list[str]:
        """The names of the variables."""
        return sorted(self._values)

    def set(self) -> None:
        """Set them in this process."""
        os.environ.update(self._values)


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable is a secret by its name, or an address with a password in it."""
    return any(word in name.upper() for word in SECRET_WORDS) or "@" in value.partition("://")[2].partition("/")[0]


def secret_names(environment: Mapping[str, str]) -> set[str]:
    """Return the names of a process's secrets."""
    return set(filter(None, environment.get(SECRET_NAMES, "").split(",")))
