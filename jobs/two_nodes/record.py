"""What the show has done: each step with its command, exit code and seconds; and what must hold, which ends it."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from nodes import BIN, REPOSITORY, Answer


class Record:
    """The steps of one part. `aliases`: texts of this machine and what is written in their place."""

    def __init__(self, part: str, aliases: Mapping[str, str]) -> None:
        self.part = part
        self._aliases = {f"{sys.executable} -m ftray": "ftray", f"{BIN}/": "", f"{REPOSITORY}/": "", **aliases}
        self._started = time.monotonic()
        self.steps: list[dict[str, Any]] = []
        self.holds: list[str] = []
        self.figures: dict[str, Any] = {}

    def step(self, asked: str, answer: Answer, seen: str, *, exit_code: int | None = 0) -> None:
        """Note a command on the laptop; the show ends where its exit code is not the expected one."""
        self.note(asked, self.spelt(answer.words), seen, exit_code=answer.exit_code, seconds=answer.seconds)
        if exit_code is not None and answer.exit_code != exit_code:
            raise SystemExit(f"{asked}: exit code {answer.exit_code}, not {exit_code}\n{answer.stderr[-4000:]}")

    def note(
        self, asked: str, command: str, seen: str, *, exit_code: int | None = None, seconds: float | None = None
    ) -> None:
        """Note something that was done."""
        kept = None if seconds is None else round(seconds, 1)
        step = {"asked": asked, "command": command, "exit_code": exit_code, "seconds": kept, "seen": seen}
        self.steps.append(step)
        print(f"{self.part}: {asked}: {seen} ({command}; exit {exit_code}, {kept} s)", file=sys.stderr, flush=True)

    def require(self, holds: bool, what: str, given: Any = None) -> None:
        """Note what holds; the show ends where it does not."""
        if not holds:
            raise SystemExit(f"{self.part}: this does not hold: {what}; seen: {given}")
        self.holds.append(what)

    def hide(self, text: str, name: str) -> None:
        """Write `name` for this text from now on."""
        self._aliases[text] = name

    def spelt(self, words: tuple[str, ...]) -> str:
        """Return a command as somebody would type it who has the repository here and the variables of the README."""
        text = shlex.join(words)
        for here, there in self._aliases.items():
            text = text.replace(here, there)
        return text

    def to_record(self) -> dict[str, Any]:
        """Return the JSON form."""
        seconds = round(time.monotonic() - self._started, 1)
        return {"seconds": seconds, "steps": self.steps, "holds": self.holds, "figures": self.figures}
