"""What an endpoint will serve: its base, its adapters, where it listens; decided before anything is started."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftray.endpoint import ServeConfig
from ftray.errors import InputError
from ftray.job import LoadedJob
from ftray.model.base import identify, load_config
from ftray.registry.registry import Registry, Resolved, open_registry
from ftray.serve.api.catalogue import base_name
from ftray.serve.asking import AdapterSource
from ftray.storage.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A checked endpoint. Plain data: it crosses process borders."""

    model: str
    """The base: a local folder or a hub id."""
    base: str
    """Its name in requests."""
    base_digest: str
    config: ServeConfig
    storage: Path
    adapters: tuple[str, ...]
    """name@digest of what is loaded before the endpoint is ready."""
    positions: int | None
    """The longest prompt and answer together, in tokens."""
    registry_url: str | None = None
    """Where the registry is, when it is not in the storage folder."""

    @property
    def url(self) -> str:
        """Where clients on this machine find it."""
        host = self.config.host
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.config.port}"

    def registry(self) -> Registry:
        """Open the registry, in whichever process this is."""
        return open_registry(self.storage, self.registry_url)

    def source(self, registry: Registry, adapter: str) -> AdapterSource:
        """Return an adapter as an engine loads it. Raises FtrayError where it is gone, or its files are others."""
        return source_of(registry, registry.resolve(adapter))


def source_of(registry: Registry, found: Resolved) -> AdapterSource:
    """Return a registered adapter as an engine loads it; its files are verified."""
    return AdapterSource(
        name=found.name,
        digest=found.digest,
        kind=found.record["kind"],
        folder=registry.files(found.name, found.digest),
        record=found.record,
    )


def serving_of_job(loaded: LoadedJob, *, adapters: Sequence[str] = ()) -> Serving:
    """Return what a job's endpoint serves: what is named, or what its `serve` section names, or its own adapter.

    Raises InputError for what is not registered, or was made for another base.
    """
    job = loaded.job
    registry = open_registry(loaded.storage, loaded.place.registry_url)
    named = list(adapters) or list(job.serve.adapters)
    found = [registry.resolve(name) for name in named]
    if not named:
        found = _newest(registry, job.name) + [registry.resolve(alias) for alias in registry.aliases()]
        base = identify(job.model).digest
        # What nobody named is served where it can be; what was named must fit.
        found = [one for one in found if _fits(one, base)]
    return _serving(job.model, job.serve, loaded.place, found)


def serving_of_adapters(names: Sequence[str], *, model: str | None, config: ServeConfig, place: Place) -> Serving:
    """Return what an endpoint of these adapters serves (all of the registry where none is named), on their base.

    `model`: the base's folder or hub id, where it is not the one that the records name. Raises InputError for adapters
    of several bases, or none.
    """
    registry = open_registry(place.folder, place.registry_url)
    found = [registry.resolve(name) for name in names or sorted({record["name"] for record in registry.list()})]
    if not names:
        found += [registry.resolve(alias) for alias in registry.aliases()]
    if not found:
        raise InputError(
            f"there is nothing to serve: {registry.place} holds no adapters",
            kind="nothing_to_serve",
            given=place.spelling,
            allowed="a job file, or the names of registered adapters",
            hint="`ftray train JOB` registers one; `ftray serve JOB` also serves a base alone.",
        )
    if model is None:
        model = _base_of(found)
    return _serving(model, config, place, found)


def _base_of(found: Sequence[Resolved]) -> str:
    """Return the one base that all of these were made for."""
    bases = {one.record["base"]["digest"]: one.record for one in found}
    if len(bases) > 1:
        raise InputError(
            "these adapters were made for different bases, and an endpoint has one",
            kind="several_bases",
            given={one.spelling: one.record["base"]["name"] for one in found},
            allowed="adapters of one base",
            hint="Name the adapters of one of them: ftray serve NAME..., or a job file.",
        )
    (record,) = bases.values()
    return str(record["base"].get("model") or record["base"]["name"])


def _serving(model: str, config: ServeConfig, place: Place, found: Sequence[Resolved]) -> Serving:
    # Replicas have folders of their own to begin from.
    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    identity = identify(model)
    for one in found:
        if not _fits(one, identity.digest):
            raise InputError(
                f"{one.spelling} was made for another base than {identity.name}",
                kind="other_base",
                given=one.record["base"],
                allowed={"name": identity.name, "digest": identity.digest},
                hint="Serve it with its own base: --model FOLDER, or the job that it was trained by.",
            )
    positions = getattr(load_config(model).get_text_config(), "max_position_embeddings", None)
    return Serving(
        model=model,
        base=base_name(model),
        base_digest=identity.digest,
        config=config,
        storage=place.folder.resolve(),
        adapters=tuple(dict.fromkeys(f"{one.name}@{one.digest}" for one in found)),
        positions=None if positions is None else int(positions),
        registry_url=place.registry_url,
    )


def _newest(registry: Registry, name: str) -> list[Resolved]:
    return [registry.resolve(name)] if registry.list(name) else []


def _fits(one: Resolved, base_digest: str) -> bool:
    # A full fine-tune is a base of its own, of the same family as the one it came from.
    return bool(one.record["base"]["digest"] == base_digest)


def require_free_port(config: ServeConfig) -> None:
    """Raise InputError `port_taken` where nobody could listen."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise InputError(
                f"nobody can listen at {config.host}:{config.port}: {error.strerror}",
                kind="port_taken",
                given=f"{config.host}:{config.port}",
                allowed="an address of this machine, and a port that nobody listens at",
                hint="End whoever listens there, or take another port: --port N, or serve.port.",
                path="serve.port",
            ) from error
