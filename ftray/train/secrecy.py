"""Which variables of a process nobody may see: the secrets of a submitted job (`submit/sealed.py`)."""

from __future__ import annotations

from collections.abc import Mapping

SECRET_NAMES = "FTRAY_SECRET_NAMES"
"""Environment of a process that has secrets: their names."""


def secret_names(environment: Mapping[str, str]) -> set[str]:
    """Return the names of a process's secrets."""
    return set(filter(None, environment.get(SECRET_NAMES, "").split(",")))
