"""The exception tree. Every error a user can cause says what was given, what is allowed and what to change.

    FtrayError
    ├── InputError     exit 2: nothing was started, nothing was lost
    ├── RunError       exit 1: the work ran and failed; `kind` is result.json's failure kind
    └── Interrupted    exit 130: stopped by the user, the same command goes on

They cross process borders (Ray workers), so they pickle with all their fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args

FailureKind = Literal["oom", "data", "node", "communication", "nonfinite", "nothing_learned", "unknown"]
FAILURE_KINDS: tuple[str, ...] = get_args(FailureKind)


class FtrayError(Exception):
    """Carry one screen of help: `message` (what happened), `given`, `allowed`, `hint` (what to change)."""

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        given: Any = None,
        allowed: Any = None,
        hint: str = "",
        path: str | None = None,
        file: str | None = None,
        line: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.given = given
        self.allowed = allowed
        self.hint = hint
        self.path = path
        self.file = file
        self.line = line

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, {key: getattr(self, key) for key in _FIELDS})

    def to_record(self) -> dict[str, Any]:
        """Return the `ftray/error/1` document that `--json` prints."""
        fields = {key: getattr(self, key) for key in _FIELDS}
        return {"schema": "ftray/error/1", "exit_code": self.exit_code, "message": self.message, **fields}


_FIELDS = ("kind", "given", "allowed", "hint", "path", "file", "line")


def _rebuild(cls: type[FtrayError], message: str, fields: dict[str, Any]) -> FtrayError:
    return cls(message, **fields)


class InputError(FtrayError):
    """The request cannot be carried out as written. Nothing was started."""

    exit_code = 2


class RunError(FtrayError):
    """The work started and failed. `kind` is one of `FAILURE_KINDS`."""

    exit_code = 1


class Interrupted(FtrayError):
    """The user stopped the work; it can be resumed by the same command."""

    exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word closest to `word`, or None when none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


OUT_OF_MEMORY_HINT = (
    "Lower train.micro_batch_size or turn on train.activation_checkpointing; with workers, a higher "
    "compute.deepspeed.stage shares more out."
)


def is_out_of_memory(error: BaseException | str) -> bool:
    """Return whether an error, or the text of one from another process, says that memory ran out: torch's or Ray's."""
    if isinstance(error, MemoryError):
        return True
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error
    # torch on GPUs, Ray, torch on the host, Python, numpy.
    words = (
        "OutOfMemory",
        "out of memory",
        "low on memory",
        "memory: you tried to allocate",
        "MemoryError",
        "Unable to allocate",
    )
    return any(word in text for word in words)
