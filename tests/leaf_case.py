"""A leaf of the job's schema and what it changes; the walk over all of them is `test_schema_walk.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftray.job import LoadedJob, run_directory, run_id_of
from ftray.preflight import Prepared, check

Effect = Callable[[LoadedJob, Path], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Two values of a leaf, what must differ between them, and the settings that must be there for it."""

    values: tuple[Any, Any]
    effect: Effect
    given: tuple[str, ...] = ()


def prepared(loaded: LoadedJob) -> Prepared:
    return check(loaded, run_id=run_id_of(loaded), run=run_directory(loaded, run_id_of(loaded)))
