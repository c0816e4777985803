"""The catalogue over a registry: tables in memory for every request, the registry for what changes them.

A request looks into the tables only. An alias that somebody else has moved (`ftray adapters promote`) is followed by
`refresh`, after what it points at has been loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ftray.errors import FtrayError, InputError
from ftray.registry.names import Resolved
from ftray.registry.registry import Registry
from ftray.serve.api.catalogue import Catalogue, Model, fingerprint, spelling
from ftray.serve.api.problems import no_model
from ftray.serve.asking import AdapterSource, Engine

log = logging.getLogger(__name__)

Record = Mapping[str, Any]


class LocalCatalogue(Catalogue):
    """The models of one base, in a registry that this process can read."""

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        *,
        base: str,
        base_digest: str,
        source_of: Callable[[Registry, Resolved], AdapterSource],
    ) -> None:
        """`base`: its name in requests. `source_of`: how an engine loads what is registered, its files verified."""
        self._registry, self._engine, self._source_of = registry, engine, source_of
        self._base, self._base_digest = base, base_digest
        self._loaded: dict[tuple[str, str], Record] = {}
        """Records by name and digest: the same files may be registered under two names."""
        self._aliases: dict[str, Record] = {}
        """Those whose adapters are loaded, by name."""
        self._refused: dict[str, Record] = {}
        """Aliases that could not be followed, as they were then: they are tried again when they move."""
        self._loading: dict[tuple[str, str], asyncio.Task[Record]] = {}
        self._changing = asyncio.Lock()

    @property
    def base(self) -> str:
        return self._base

    def know(self, record: Record) -> None:
        """Note an adapter that the engine has loaded."""
        self._loaded[_key(record)] = record

    async def models(self) -> list[Model]:
        found = [Model(id=self._base)]
        for record in sorted(self._loaded.values(), key=_age):
            found.append(self._model(record, f"{record['name']}@{fingerprint(record['digest'])}"))
        names = sorted({record["name"] for record in self._loaded.values()})
        found += [self._model(self._newest(name), name) for name in names]
        for alias, target in sorted(self._aliases.items()):
            found.append(self._model(self._loaded[_key(target)], alias, alias=alias))
        return found

    def _model(self, record: Record, reference: str, *, alias: str | None = None) -> Model:
        return Model(
            id=f"{self._base}:{reference}",
            name=record["name"],
            digest=record["digest"],
            alias=alias,
            created_at=record["created_at"],
        )

    def _newest(self, name: str) -> Record:
        return max((one for one in self._loaded.values() if one["name"] == name), key=_age)

    async def resolve(self, model: str) -> Model:
        found = self._find(model)
        if found is None:
            raise no_model(model)
        return found

    def _find(self, model: str) -> Model | None:
        """Return what a spelling stands for among what is loaded."""
        parts = spelling(model)
        if parts is None or parts.base != self._base:
            return None
        if parts.reference is None:
            return Model(id=self._base)
        if parts.digest is None and parts.name in self._aliases:
            target = self._aliases[parts.name]
            return self._model(self._loaded[_key(target)], parts.name, alias=parts.name)
        named = [one for one in self._loaded.values() if one["name"] == parts.name]
        if parts.digest is not None:
            named = [one for one in named if one["digest"].startswith(parts.digest)]
            if len(named) != 1:
                return None
        return self._model(max(named, key=_age), parts.reference) if named else None

    async def admit(self, model: str) -> Model:
        found = self._find(model)
        if found is not None:
            return found
        parts = spelling(model)
        if parts is None or parts.base != self._base or parts.reference is None:
            raise no_model(model)
        try:
            resolved = await asyncio.to_thread(self._registry.resolve, parts.reference)
        except InputError as error:
            raise no_model(model) from error
        record = await self._load(resolved)
        if resolved.via_alias is not None:
            await self.refresh()
        return self._find(model) or self._model(record, parts.reference)

    async def restore(self, digest: str) -> Model:
        record = next((one for one in self._loaded.values() if one["digest"] == digest), None)
        if record is None:
            records = await asyncio.to_thread(self._registry.list)
            known = next((one for one in records if one["digest"] == digest), None)
            if known is None:
                raise InputError(
                    f"no registered adapter has the digest {fingerprint(digest)}",
                    kind="unknown_adapter",
                    given=digest,
                    hint="It has been deleted: import it again, or end the experiment that needs it.",
                )
            record = await self._load(Resolved(name=known["name"], digest=digest, record=known))
        return self._model(record, f"{record['name']}@{fingerprint(digest)}")

    async def _load_named(self, target: Record) -> Record:
        """Load what a record names by name and digest."""
        if _key(target) in self._loaded:
            return self._loaded[_key(target)]
        record = await asyncio.to_thread(self._registry.get, *_key(target))
        return await self._load(Resolved(name=record["name"], digest=record["digest"], record=record))

    async def _load(self, resolved: Resolved) -> Record:
        """Load an adapter on every engine. Two who want the same one at a time wait for one load."""
        key = _key(resolved.record)
        if key in self._loaded:
            return self._loaded[key]
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load_anew(resolved))
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(task)

    async def _load_anew(self, resolved: Resolved) -> Record:
        if resolved.record["base"]["digest"] != self._base_digest:
            raise InputError(
                f"{resolved.spelling} was made for another base",
                kind="other_base",
                given=resolved.record["base"],
                allowed={"name": self._base, "digest": self._base_digest},
                hint="Serve it with its own base.",
            )
        source = await asyncio.to_thread(self._source_of, self._registry, resolved)
        await self._engine.load(source)
        self.know(resolved.record)
        return resolved.record

    async def adapters(self) -> dict[str, Any]:
        records, aliases = await asyncio.gather(
            asyncio.to_thread(self._registry.list), asyncio.to_thread(self._registry.aliases)
        )
        return {
            "object": "list",
            "data": [self._shown(record, aliases) for record in records],
            "aliases": list(aliases.values()),
        }

    def _shown(self, record: Record, aliases: Mapping[str, Record]) -> dict[str, Any]:
        kept = ("name", "digest", "kind", "base", "rank", "alpha", "run_id", "verdict", "created_at", "created_by")
        pointing = [alias for alias, one in aliases.items() if one["digest"] == record["digest"]]
        return {
            **{key: record.get(key) for key in kept},
            "aliases": pointing,
            "loaded": _key(record) in self._loaded,
        }

    async def alias(self, alias: str) -> Record | None:
        return (await asyncio.to_thread(self._registry.aliases)).get(alias)

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
    ) -> Record:
        resolved = await asyncio.to_thread(self._registry.resolve, f"{name}@{digest}")
        await self._load(resolved)
        async with self._changing:
            record = await asyncio.to_thread(
                self._registry.promote,
                alias,
                name,
                resolved.digest,
                generation=generation,
                by=by,
                reason=reason,
                force=force,
            )
            self._point(record)
        return record

    async def rollback(self, alias: str, *, generation: int | None, by: str, reason: str | None) -> Record:
        async with self._changing:
            present = await self.alias(alias)
            if present is not None and present["previous"] is not None:
                await self._load_named(present["previous"])
                # What has been loaded is what it goes back to, or nothing is done.
                generation = present["generation"] if generation is None else generation
            record = await asyncio.to_thread(
                self._registry.rollback, alias, generation=generation, by=by, reason=reason
            )
            self._point(record)
        return record

    def _point(self, record: Record) -> None:
        self._aliases[record["alias"]] = record
        self._refused.pop(record["alias"], None)

    async def refresh(self) -> None:
        """Follow the aliases to where they point now. One whose adapter cannot be loaded stays where it was."""
        async with self._changing:
            aliases = await asyncio.to_thread(self._registry.aliases)
            for name in [name for name in self._aliases if name not in aliases]:
                del self._aliases[name]
            for name, record in aliases.items():
                if record in (self._aliases.get(name), self._refused.get(name)):
                    continue
                try:
                    await self._load_named(record)
                    self._point(record)
                except FtrayError as error:
                    self._refused[name] = record
                    log.error("the alias %s cannot be followed: %s", name, error.message)


def _key(record: Record) -> tuple[str, str]:
    return record["name"], record["digest"]


def _age(record: Record) -> tuple[str, str]:
    return record["created_at"], record["digest"]
