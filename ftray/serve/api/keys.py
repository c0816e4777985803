"""API keys: a file that holds who may do what, and of each key its SHA-256 alone.

A key is 256 random bits, so that a plain hash cannot be guessed back. The file is read again when it changes; a file
that is gone or damaged opens nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError

from ftray.artifacts import now, read_json, write_json
from ftray.config import Config
from ftray.endpoint import ServeConfig
from ftray.errors import InputError
from ftray.serve.experiment.spec import Slug

log = logging.getLogger(__name__)

Scope = Literal["infer", "feedback", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "ftray_"
SCHEMA = "ftray/keys/1"


class Key(Config):
    """One key, as the file holds it."""

    name: Slug
    """Whose it is."""
    scopes: Annotated[list[Scope], Field(min_length=1)]
    """infer: models and answers. feedback: outcomes and preferences. admin: everything."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the key's text."""
    created_at: str
    """When it was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sends a request. Without a keys file everybody is nobody, and may do everything."""

    name: str | None = None
    scopes: frozenset[Scope] = frozenset(SCOPES)

    def may(self, scope: Scope | None) -> bool:
        """Return whether a scope is theirs; None asks for any key."""
        return scope is None or scope in self.scopes or "admin" in self.scopes

    @property
    def is_admin(self) -> bool:
        """Whether a key has said so: nobody without keys is told the arms."""
        return self.name is not None and "admin" in self.scopes


def read_keys(path: Path) -> list[Key]:
    """Read a keys file. Raises InputError `keys_file` for one that is missing or damaged."""
    try:
        record = read_json(path)
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise _bad(path, f"it is not of the schema {SCHEMA}")
        keys = [Key.model_validate(one) for one in record.get("keys", [])]
    except OSError as error:
        raise _bad(path, str(error.strerror)) from error
    except ValidationError as error:
        raise _bad(path, str(error.errors()[0]["msg"])) from error
    twice = {key.name for key in keys if [other.name for other in keys].count(key.name) > 1}
    if twice:
        raise _bad(path, f"two keys are called {min(twice)!r}")
    return keys


def _bad(path: Path, why: str) -> InputError:
    return InputError(
        f"the keys file {path} cannot be used: {why}",
        kind="keys_file",
        given=str(path),
        allowed="a file that `ftray keys add` wrote",
        hint="Make one: ftray keys add NAME --scope infer --file FILE",
        path="serve.keys_file",
        file=str(path),
    )


def add_key(path: Path, *, name: str, scopes: Sequence[Scope]) -> tuple[Key, str]:
    """Add a key to the file, made where there is none; return it and its text, which nothing keeps.

    Raises InputError `key_exists` for a name that is taken.
    """
    keys = read_keys(path) if path.exists() else []
    if name in [key.name for key in keys]:
        raise InputError(
            f"there is a key {name!r} already",
            kind="key_exists",
            given=name,
            allowed="a name that no key has",
            hint=f"Choose another name, or remove it first: ftray keys remove {name}",
        )
    text = PREFIX + secrets.token_urlsafe(32)
    try:
        key = Key(name=name, scopes=sorted(set(scopes), key=SCOPES.index), sha256=_hash(text), created_at=now())
    except ValidationError as error:
        raise InputError(
            f"{name!r} is no name of a key, or there are no scopes",
            kind="bad_name",
            given=name,
            allowed="2 to 64 lower-case letters, digits, - and _, the first a letter or a digit",
            hint="Choose another name.",
        ) from error
    _write(path, [*keys, key])
    return key, text


def remove_key(path: Path, *, name: str) -> Key:
    """Take a key out of the file: from then on it opens nothing. Raises InputError `unknown_key_name`."""
    keys = read_keys(path)
    for key in keys:
        if key.name == name:
            _write(path, [other for other in keys if other is not key])
            return key
    raise InputError(
        f"there is no key {name!r}",
        kind="unknown_key_name",
        given=name,
        allowed=[key.name for key in keys],
        hint="`ftray keys list` shows them.",
    )


def _write(path: Path, keys: Sequence[Key]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"schema": SCHEMA, "keys": [key.model_dump(mode="json") for key in keys]})
    path.chmod(0o600)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Keyring:
    """The keys of a file, read again when the file changes. Without a file everybody is let in."""

    def __init__(self, path: Path | None) -> None:
        """Raise InputError for a file that cannot be used."""
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._keys: list[Key] = []
        if path is not None:
            self._seen, self._keys = _stamp(path), read_keys(path)

    @property
    def is_open(self) -> bool:
        """Whether there are no keys, and everybody may do everything."""
        return self._path is None

    def identify(self, authorization: str | None) -> Caller | None:
        """Return who sends a header `Authorization: Bearer KEY`; None for nobody we know."""
        if self._path is None:
            return Caller()
        scheme, _, text = (authorization or "").partition(" ")
        given = _hash(text.strip())
        found: Key | None = None
        for key in self._current(self._path):
            # All of them, each in the same time: how long it takes says nothing.
            if hmac.compare_digest(key.sha256, given):
                found = key
        if found is None or scheme.lower() != "bearer":
            return None
        return Caller(name=found.name, scopes=frozenset(found.scopes))

    def _current(self, path: Path) -> list[Key]:
        stamp = _stamp(path)
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._keys = read_keys(path)
            except InputError as error:
                log.error("%s; no key is accepted until it can be read again", error.message)
                self._keys = []
        return self._keys


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def require_safe_binding(config: ServeConfig) -> None:
    """Raise InputError `unsafe_host` for an address that others can reach, without keys."""
    if config.keys_file is not None or is_loopback(config.host):
        return
    raise InputError(
        f"{config.host} can be reached from outside this machine, and there are no API keys",
        kind="unsafe_host",
        given=config.host,
        allowed="127.0.0.1, ::1 or localhost; any address with serve.keys_file",
        hint="Make a key (ftray keys add NAME --scope infer) and name its file in serve.keys_file.",
        path="serve.host",
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address. A name other than localhost might be any address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def key_record(key: Key) -> dict[str, Any]:
    """Return what lists say of a key: not its hash."""
    return {"name": key.name, "scopes": key.scopes, "created_at": key.created_at}
