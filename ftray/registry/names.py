"""How adapters and aliases are named, and what a spelling stands for: `name`, `name@digest prefix` or an alias.

An alias and an adapter never share a name: both ways to get there are refused, and so is what two processes might
have brought about at the same moment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ftray.errors import InputError, nearest

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{1,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")
SHORTEST_PREFIX = 12
"""Characters of a digest that address an adapter."""

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a spelling stands for."""

    name: str
    digest: str
    record: Record
    via_alias: str | None = None
    """The alias that was named; None where the adapter was."""

    @property
    def spelling(self) -> str:
        """What addresses the same adapter for ever."""
        return spell(self.name, self.digest)


def spell(name: str, digest: str) -> str:
    """Return how people name one adapter."""
    return f"{name}@{digest[:SHORTEST_PREFIX]}"


def require_name(name: str, *, of: str = "adapter") -> None:
    """Raise InputError `bad_name` for what is no name; `of` is what it should name."""
    if NAME.fullmatch(name) is None:
        raise InputError(
            f"{name!r} is no name of an {of}",
            kind="bad_name",
            given=name,
            allowed="2 to 64 lower-case letters, digits, - and _, the first a letter or a digit",
            hint="Choose another name.",
        )


def resolve(text: str, adapters: Iterable[Record], aliases: Mapping[str, Record]) -> Resolved:
    """Return what `text` stands for: an alias first, else the newest adapter of that name, or the one of that digest.

    `adapters`: records, in any order; the newest is the last by `created_at`, ties by digest. `aliases`: by name.
    Raises InputError `bad_name`, `bad_reference`, `unknown_adapter`, `ambiguous_name`, or `dangling_alias` for an
    alias whose adapter has been deleted.
    """
    name, at, prefix = text.partition("@")
    require_name(name)
    known = list(adapters)
    named = [record for record in known if record["name"] == name]
    alias = aliases.get(name)
    if alias is not None and named:
        raise _shared(name)
    if at:
        return _by_digest(text, prefix, named, is_alias=alias is not None)
    if alias is not None:
        return _by_alias(name, alias, known)
    if not named:
        raise _unknown(name, {record["name"] for record in known} | set(aliases))
    newest = max(named, key=lambda record: (record["created_at"], record["digest"]))
    return Resolved(name=name, digest=newest["digest"], record=newest)


def _by_digest(text: str, prefix: str, named: list[Record], *, is_alias: bool) -> Resolved:
    if is_alias or not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}", prefix):
        raise InputError(
            f"{text!r} has a digest, and an alias has none" if is_alias else f"{text!r} does not end in a digest",
            kind="bad_reference",
            given=text,
            allowed="an alias alone" if is_alias else f"name@ and {SHORTEST_PREFIX} to 64 hexadecimal digits",
            hint="`ftray adapters list` shows the digests.",
        )
    found = [record for record in named if record["digest"].startswith(prefix)]
    if len(found) == 1:
        return Resolved(name=found[0]["name"], digest=found[0]["digest"], record=found[0])
    digests = sorted(record["digest"] for record in found or named)
    if found:
        raise InputError(
            f"{len(found)} adapters answer to {text!r}",
            kind="ambiguous_name",
            given=text,
            allowed=digests,
            hint="Write more of the digest.",
        )
    raise InputError(
        f"there is no adapter {text!r}",
        kind="unknown_adapter",
        given=text,
        allowed=[spell(text.partition("@")[0], digest) for digest in digests] or "a registered adapter",
        hint="`ftray adapters list` shows what there is.",
    )


def _by_alias(alias: str, target: Record, known: list[Record]) -> Resolved:
    name, digest = target["name"], target["digest"]
    for record in known:
        if (record["name"], record["digest"]) == (name, digest):
            return Resolved(name=name, digest=digest, record=record, via_alias=alias)
    raise InputError(
        f"the alias {alias!r} points at {spell(name, digest)}, which is not in the registry any more",
        kind="dangling_alias",
        given=alias,
        hint=f"Point it at another one: ftray adapters promote {alias} NAME, or import that adapter again.",
    )


def _shared(name: str) -> InputError:
    return InputError(
        f"{name!r} is the name of an alias and of adapters: it does not say which is meant",
        kind="ambiguous_name",
        given=name,
        allowed="names of aliases that no adapter has",
        hint=f"Name the adapter by its digest after deleting the alias: ftray adapters delete {name} --alias.",
    )


def _unknown(name: str, known: set[str]) -> InputError:
    close = nearest(name, known)
    return InputError(
        f"there is no adapter and no alias {name!r}",
        kind="unknown_adapter",
        given=name,
        allowed=sorted(known) or "nothing is registered yet",
        hint=f"Did you mean {close}?" if close else "ftray train and ftray sweep register; so does import.",
    )
