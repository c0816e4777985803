"""What can be asked here, under which names, and what a name stands for at this moment: the seam to the registry.

A name from a request is matched against a pattern and then looked up; nothing of it ever becomes a path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from ftray.registry.names import SHORTEST_PREFIX

SPELLING = re.compile(
    r"(?P<base>[a-z0-9][a-z0-9_-]{0,63})(?::(?P<name>[a-z0-9][a-z0-9_-]{1,63})(?:@(?P<digest>[0-9a-f]{12,64}))?)?"
)
EXPERIMENT = re.compile(r"exp:(?P<name>[a-z0-9][a-z0-9_-]{1,63})")
EXPERIMENTS = "exp"
"""No base is called so: its adapters could not be told from experiments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model as requests name it."""

    id: str
    name: str | None = None
    """Of the adapter; None is the base."""
    digest: str | None = None
    alias: str | None = None
    """The alias that the name was."""
    created_at: str | None = None

    @property
    def fingerprint(self) -> str:
        """What answers, for system_fingerprint and labels: the digest's beginning, or `base`."""
        return fingerprint(self.digest)


def fingerprint(digest: str | None) -> str:
    """Return the short name of what answers."""
    return "base" if digest is None else digest[:SHORTEST_PREFIX]


class Catalogue(Protocol):
    """The models of one base. What a call has returned is so on every replica."""

    @property
    def base(self) -> str:
        """The base as requests name it."""

    async def models(self) -> list[Model]:
        """Return what can be asked now: base, adapters by name and by digest, aliases."""

    async def resolve(self, model: str) -> Model:
        """Return what a spelling stands for now. Raises Problem 404 where it is not loaded, whatever is registered."""

    async def admit(self, model: str) -> Model:
        """Resolve a spelling, and load what it stands for where it is not loaded yet.

        Raises Problem 404 for what is not registered, and what `Engine.load` raises.
        """

    async def restore(self, digest: str) -> Model:
        """Return the adapter of a digest by its name, loaded where it was not. Raises as `admit` does."""

    async def refresh(self) -> None:
        """Follow what others have changed: aliases that were moved from elsewhere."""

    async def adapters(self) -> dict[str, Any]:
        """Return the registered adapters and aliases, as GET /v1/adapters answers."""

    async def alias(self, alias: str) -> Mapping[str, Any] | None:
        """Return an alias's record (CONTRACT, registry); None where there is none."""

    async def promote(
        self,
        alias: str,
        *,
        name: str,
        digest: str,
        generation: int | None,
        by: str,
        reason: str | None,
        force: str | None = None,
    ) -> Mapping[str, Any]:
        """Load an adapter everywhere, then point the alias at it; return the alias's record.

        `generation`: of the alias as the caller knows it, 0 where there is none yet, None for whichever it is.
        `force`: why it is promoted without a passing verdict. Raises what `Registry.promote` and `Engine.load` raise.
        """

    async def rollback(self, alias: str, *, generation: int | None, by: str, reason: str | None) -> Mapping[str, Any]:
        """Point an alias at what it pointed at before. Raises as `promote` does."""


def base_name(model: str) -> str:
    """Return the name under which a base is served: the last part of its path or hub id, as a slug."""
    last = PurePosixPath(model.rstrip("/").replace("\\", "/")).name.lower()
    slug = re.sub(r"[^a-z0-9_-]+", "-", last).strip("-_")[:64].rstrip("-_")
    return slug if slug and slug != EXPERIMENTS else "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """A model's name, taken apart."""

    base: str
    name: str | None
    digest: str | None
    """A prefix of it, of 12 characters or more."""

    @property
    def reference(self) -> str | None:
        """What the registry calls it; None is the base."""
        return self.name if self.digest is None else f"{self.name}@{self.digest}"


def spelling(model: str) -> Spelling | None:
    """Return the parts of a model's name; None for what is none."""
    found = SPELLING.fullmatch(model)
    return Spelling(**found.groupdict()) if found else None


def experiment_name(model: str) -> str | None:
    """Return the experiment that a model's name stands for; None for other models."""
    found = EXPERIMENT.fullmatch(model)
    return found["name"] if found else None
