"""The registry: immutable adapters `name@digest`, and aliases that move by compare-and-swap and by nothing else.

What an adapter is, its digest says; what is known of it, its record says. A record is written anew only when the same
files have been judged again.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ftray.artifacts import digest_file, digest_files, now
from ftray.errors import InputError, RunError
from ftray.registry.contents import CARD_FILE, contents
from ftray.registry.local_store import sync
from ftray.registry.names import DIGEST, require_name, resolve, spell
from ftray.registry.names import Resolved as Resolved
from ftray.registry.store import RECORD_FILE, Store, newest_first, open_store

SCHEMA = "ftray/adapter/1"
SHIP = "ship"
JUDGEMENT = ("verdict", "verdict_reasons", "metrics", "card")
"""What a second judgement of the same files changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What `put` has come to."""

    name: str
    digest: str
    is_new: bool
    """False where the same files had been registered under this name before."""


def open_registry(storage: Path, url: str | None = None) -> Registry:
    """Return the registry at `url`, else at FTRAY_REGISTRY, else the storage folder's own."""
    return Registry(open_store(storage, url))


class Registry:
    """Adapters, models and aliases in one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self.store.place

    def put(self, folder: Path, record: Mapping[str, Any]) -> Registered:
        """Register the adapter (or model) in `folder` under its record's name; its files are copied and synced.

        `record`: what `record.py` makes. The digest, the files with their sizes, the time and who it was are added.
        Registering the same files again is once: a record that has been judged since replaces the judgement.
        Raises InputError `bad_name`, `ambiguous_name` (an alias has that name) or `bad_adapter` (files are missing).
        """
        self.require_free(record["name"])
        staged = self.store.scratch()
        try:
            entries = _stage(folder, staged, kind=record["kind"])
            digest = _digest_of(entries)
            whole = {
                **record,
                "schema": SCHEMA,
                "digest": digest,
                "files": entries,
                "bytes": sum(entry["bytes"] for entry in entries.values()),
                "created_at": _moment(),
                "created_by": whoami(),
            }
            with self.store.guard():
                self.require_free(record["name"])
                is_new = self.store.publish(staged, whole)
                if not is_new:
                    self._judge_again(whole)
        except OSError as error:
            raise RunError(
                f"{folder} cannot be registered in {self.place}: {error.strerror or error}",
                kind="registry",
                given=str(folder),
                hint="Free some space or make it writable, then run the same command again: nothing is trained anew.",
            ) from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return Registered(name=record["name"], digest=digest, is_new=is_new)

    def _judge_again(self, record: Mapping[str, Any]) -> None:
        present = self.get(record["name"], record["digest"])
        judgement = {key: record.get(key) for key in JUDGEMENT}
        if record["verdict"] in ("none", None) or judgement == {key: present.get(key) for key in JUDGEMENT}:
            return
        self.store.replace_record({**present, **judgement, "judged_at": record["created_at"]})

    def require_free(self, name: str) -> None:
        """Raise InputError for a name that an adapter cannot have: no name, or an alias's."""
        require_name(name)
        if self._alias(name) is not None:
            raise InputError(
                f"{name!r} is an alias in {self.place}, and an adapter cannot have an alias's name",
                kind="ambiguous_name",
                given=name,
                allowed="a name that no alias has",
                hint=f"Choose another name, or delete the alias: ftray adapters delete {name} --alias.",
                path="name",
            )

    def get(self, name: str, digest: str) -> dict[str, Any]:
        """Return the record of `name@digest`; of the digest 12 digits are enough.

        Raises InputError `bad_name`, `bad_reference` or `unknown_adapter`.
        """
        # Both may come from a request: no path is made of what has not been looked at.
        require_name(name)
        record = self.store.record(name, digest) if DIGEST.fullmatch(digest) else None
        return record or dict(resolve(f"{name}@{digest}", self.store.records(name), {}).record)

    def has(self, name: str, digest: str) -> bool:
        """Return whether `name@digest` is registered."""
        require_name(name)
        return bool(DIGEST.fullmatch(digest)) and self.store.record(name, digest) is not None

    def list(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return all records, or those of one name, the newest first."""
        if name is not None:
            require_name(name)
        return newest_first(self.store.records(name))

    def aliases(self) -> dict[str, dict[str, Any]]:
        """Return every alias's record by its name."""
        return {name: alias for name, alias in self.store.aliases().items() if alias["name"] is not None}

    def resolve(self, text: str) -> Resolved:
        """Return what a spelling stands for now: `name`, `name@prefix` or an alias; see `names.resolve`."""
        name = text.partition("@")[0]
        require_name(name)
        alias = self._alias(name)
        known = self.store.records(name)
        if alias is not None:
            known += [record for record in [self.store.record(alias["name"], alias["digest"])] if record is not None]
        if not known and alias is None:
            # Nothing is there: all are read, to say what is near.
            return resolve(text, self.store.records(), self.aliases())
        return resolve(text, known, {name: alias} if alias is not None else {})

    def files(self, name: str, digest: str) -> Path:
        """Return a local folder with the adapter's files, verified against its digest.

        Raises RunError `changed_adapter` where the files are not those that were registered.
        """
        record = self.get(name, digest)
        folder = self.store.folder(record)
        if self._is_whole(folder, record):
            return folder
        if self.store.refetch(record) and self._is_whole(folder := self.store.folder(record), record):
            return folder
        raise RunError(
            f"the files of {spell(name, record['digest'])} in {self.place} are not those that were registered",
            kind="changed_adapter",
            given=_digests(folder),
            allowed={file: entry["sha256"] for file, entry in record["files"].items()},
            hint="Delete it and register it again: from its run, or with ftray adapters import.",
        )

    verify = files

    def _is_whole(self, folder: Path, record: Mapping[str, Any]) -> bool:
        present = [path for path in folder.iterdir() if path.is_file() and path.name != RECORD_FILE]
        return {path.name for path in present} == set(record["files"]) and digest_files(present) == record["digest"]

    def export(self, name: str, digest: str, folder: Path) -> Path:
        """Copy the adapter's verified files and its model card to a new or empty folder; return it."""
        record = self.get(name, digest)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder} is not empty",
                kind="storage",
                given=str(folder),
                allowed="a folder that does not exist yet, or is empty",
                hint="Choose another folder.",
            )
        source = self.files(name, record["digest"])
        folder.mkdir(parents=True, exist_ok=True)
        for file in record["files"]:
            shutil.copyfile(source / file, folder / file)
        # What was verified is the registry's copy: the disk that this one went to may differ.
        if digest_files(folder / file for file in record["files"]) != record["digest"]:
            raise RunError(f"the copy in {folder} differs from the registry's", kind="changed_adapter")
        if record.get("card"):
            (folder / CARD_FILE).write_text(record["card"], encoding="utf-8")
        return folder

    def delete(self, name: str, digest: str, *, force: bool = False) -> dict[str, Any]:
        """Delete an adapter; return its record. Refused where an alias points at it, unless forced."""
        record = self.get(name, digest)
        with self.store.guard():
            target = (record["name"], record["digest"])
            pointing = [alias for alias, one in self.aliases().items() if (one["name"], one["digest"]) == target]
            if pointing and not force:
                raise InputError(
                    f"{spell(*target)} is what {', '.join(pointing)} points at",
                    kind="in_use",
                    given=spell(*target),
                    allowed="an adapter that no alias points at",
                    hint="Promote another one first, or add --force: the alias then points nowhere.",
                )
            self.store.remove(*target)
        return record

    def delete_alias(self, alias: str) -> dict[str, Any]:
        """Delete an alias, not what it points at; return its record. Its generations are never given again."""
        with self.store.guard():
            present = self._require_alias(alias)
            nowhere = {"name": None, "digest": None, "by": whoami(), "reason": None}
            self._swap({**present, **nowhere}, present)
        return present

    def promote(
        self,
        alias: str,
        name: str,
        digest: str,
        *,
        generation: int | None = None,
        by: str | None = None,
        reason: str | None = None,
        force: str | None = None,
    ) -> dict[str, Any]:
        """Point an alias at an adapter by compare-and-swap; return the alias's record.

        `generation`: the one that is replaced, as far as the caller knows (0: there is no such alias); None takes the
        present one. `force`: why an adapter is promoted whose verdict is not `ship`; recorded as the reason. An alias
        that points there already stays as it is.

        Raises RunError `lost_swap` when another one came first, InputError `not_shippable` without a passing verdict
        or `force`, `unknown_adapter`, `bad_name`, and `ambiguous_name` for an alias named as an adapter.
        """
        require_name(alias, of="alias")
        with self.store.guard():
            record = self.get(name, digest)
            if self.store.records(alias):
                raise InputError(
                    f"{alias!r} is the name of an adapter in {self.place}, and an alias cannot have it, too",
                    kind="ambiguous_name",
                    given=alias,
                    allowed="a name that no adapter has, such as champion",
                    hint="Choose another alias.",
                )
            _require_shippable(record, force)
            present = self.store.alias(alias)
            _require_generation(alias, present, generation)
            target = {"name": record["name"], "digest": record["digest"]}
            if present is not None and {key: present[key] for key in target} == target:
                return present
            why = {"by": by or whoami(), "reason": force or reason, "forced": record["verdict"] != SHIP}
            return self._swap({"alias": alias, **target, **why}, present)

    def rollback(
        self, alias: str, *, generation: int | None = None, by: str | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        """Point an alias at what it pointed at before, by one more compare-and-swap; as `promote`.

        Raises InputError `no_previous` where there is nothing to go back to.
        """
        require_name(alias, of="alias")
        with self.store.guard():
            present = self._require_alias(alias)
            _require_generation(alias, present, generation)
            previous = present["previous"]
            if previous is None:
                raise InputError(
                    f"the alias {alias!r} has pointed at nothing before {spell(present['name'], present['digest'])}",
                    kind="no_previous",
                    given=alias,
                    hint=f"Promote another adapter: ftray adapters promote {alias} NAME.",
                )
            record = self.get(previous["name"], previous["digest"])
            why = {"by": by or whoami(), "reason": reason or "rollback", "forced": record["verdict"] != SHIP}
            return self._swap({"alias": alias, **previous, **why}, present)

    def _swap(self, alias: Mapping[str, Any], present: Mapping[str, Any] | None) -> dict[str, Any]:
        """Write an alias as the generation after `present`. Raises RunError `lost_swap`."""
        was = None
        if present is not None and present["name"] is not None:
            was = {"name": present["name"], "digest": present["digest"]}
        swapped = {
            "schema": "ftray/alias/1",
            **alias,
            "generation": (present["generation"] if present else 0) + 1,
            "previous": was,
            "at": now(),
        }
        if not self.store.swap(swapped):
            raise lost_swap(alias["alias"], given=swapped["generation"] - 1, present=self.store.alias(alias["alias"]))
        return swapped

    def _alias(self, name: str) -> dict[str, Any] | None:
        alias = self.store.alias(name)
        return None if alias is None or alias["name"] is None else alias

    def _require_alias(self, alias: str) -> dict[str, Any]:
        present = self._alias(alias)
        if present is None:
            raise InputError(
                f"there is no alias {alias!r}",
                kind="unknown_alias",
                given=alias,
                allowed=sorted(self.aliases()) or "there are no aliases yet",
                hint=f"Make it: ftray adapters promote {alias} NAME.",
            )
        return present


def _require_generation(alias: str, present: Mapping[str, Any] | None, generation: int | None) -> None:
    if generation is not None and generation != (present["generation"] if present else 0):
        raise lost_swap(alias, given=generation, present=present)


def lost_swap(alias: str, *, given: int, present: Mapping[str, Any] | None) -> RunError:
    """Return the error of a change that came too late."""
    where = f"{spell(present['name'], present['digest'])}" if present and present["name"] else "nothing"
    return RunError(
        f"the alias {alias!r} has been changed by somebody else: it points at {where} now",
        kind="lost_swap",
        given={"generation": given},
        allowed={"generation": present["generation"] if present else 0},
        hint="See whether you still want it: ftray adapters list; then run the command again.",
    )


def _require_shippable(record: Mapping[str, Any], force: str | None) -> None:
    if force is not None and not force.strip():
        raise InputError(
            "a forced promotion needs a reason",
            kind="usage",
            given=force,
            allowed="a sentence that says why",
            hint='--force "why it is promoted all the same"',
        )
    if record["verdict"] == SHIP or force is not None:
        return
    raise InputError(
        f"the verdict on {spell(record['name'], record['digest'])} is {record['verdict']}, not {SHIP}",
        kind="not_shippable",
        given=record["verdict"],
        allowed=SHIP,
        hint='Promote one that is shown to be better, or say why not: --force "reason"; the reason is recorded.',
    )


def _stage(folder: Path, staged: Path, *, kind: str) -> dict[str, dict[str, Any]]:
    """Copy an adapter's files, synced and read-only; return what `files` in its record says."""
    entries = {}
    for path in contents(folder, kind=kind):
        copied = staged / path.name
        shutil.copyfile(path, copied)
        copied.chmod(0o444)
        sync(copied)
        entries[path.name] = {"bytes": copied.stat().st_size, "sha256": digest_file(copied)}
    return entries


def _digest_of(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what `digest_files` returns of these files."""
    lines = sorted(f"{entry['sha256']}  {name}\n" for name, entry in entries.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD_FILE)
    return {path.name: digest_file(path) for path in files}


def _moment() -> str:
    """Return the time as records spell it, finer: of two adapters of one name the newest must be known."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def whoami() -> str:
    """Return who runs this process, and where."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
