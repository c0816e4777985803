"""API keys: made once, kept as hashes, read again when the file changes; and who may listen where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from api_world import World, chat, client_of, tell

from ftray.endpoint import ServeConfig
from ftray.errors import InputError
from ftray.serve.api.keys import Keyring, add_key, is_loopback, read_keys, remove_key, require_safe_binding


def test_a_key_is_shown_once_and_kept_as_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, text = add_key(path, name="ann", scopes=["admin", "infer"])
    assert len(text) >= 40, "256 random bits"
    assert text not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert key.scopes == ["infer", "admin"]
    assert [one.name for one in read_keys(path)] == ["ann"]
    caller = Keyring(path).identify(f"Bearer {text}")
    assert caller is not None
    assert caller.name == "ann"
    assert caller.is_admin


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer nonsense", "Basic {key}", "{key}", "Bearer {key}x"]
)
def test_what_is_no_key_is_nobody(header: str | None, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, text = add_key(path, name="ann", scopes=["infer"])
    assert Keyring(path).identify(header.format(key=text) if header else header) is None


def test_a_removed_key_opens_nothing_and_a_new_one_does_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, first = add_key(path, name="ann", scopes=["infer"])
    ring = Keyring(path)
    _, second = add_key(path, name="bob", scopes=["feedback"])
    assert ring.identify(f"Bearer {second}") is not None
    remove_key(path, name="ann")
    assert ring.identify(f"Bearer {first}") is None
    assert ring.identify(f"Bearer {second}") is not None


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": "ftray/keys/1", "keys": [{"name": "ann"}]}'])
def test_a_file_that_is_gone_or_damaged_opens_nothing(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, text = add_key(path, name="ann", scopes=["infer"])
    good = path.read_text()
    ring = Keyring(path)
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert ring.identify(f"Bearer {text}") is None
    with pytest.raises(InputError) as refused:
        Keyring(path)
    assert refused.value.kind in ("keys_file", "bad_record")
    path.write_text(good)
    assert ring.identify(f"Bearer {text}") is not None, "it is whole again"


def test_names_are_taken_once_and_scopes_are_known(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, name="ann", scopes=["infer"])
    for name, kind in (("ann", "key_exists"), ("../x", "bad_name"), ("", "bad_name")):
        with pytest.raises(InputError) as refused:
            add_key(path, name=name, scopes=["infer"])
        assert refused.value.kind == kind
    with pytest.raises(InputError, match="no key 'bob'"):
        remove_key(path, name="bob")


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("example.org", False), ("", False), ("127.0.0.1.example.org", False)],
)  # fmt: skip
def test_others_may_reach_it_only_with_keys(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local
    if host:
        require_safe_binding(ServeConfig(host=host, keys_file="keys.json"))
    if is_local:
        require_safe_binding(ServeConfig(host=host))
    elif host:
        with pytest.raises(InputError) as refused:
            require_safe_binding(ServeConfig(host=host))
        assert refused.value.kind == "unsafe_host"
        assert refused.value.exit_code == 2


def test_the_endpoint_follows_the_file(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        path = tmp_path / "keys.json"
        _, admin = add_key(path, name="root", scopes=["admin"])
        _, text = add_key(path, name="ann", scopes=["infer"])
        async with client_of(here.app(keys=Keyring(path)), key=text) as client:
            assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
            forbidden = await client.get("/metrics")
            assert forbidden.status_code == 403
            assert forbidden.json()["error"]["code"] == "missing_scope"
            assert (await client.get("/metrics", headers={"authorization": f"Bearer {admin}"})).status_code == 200
            _, reader = add_key(path, name="prometheus", scopes=["metrics"])
            read = {"authorization": f"Bearer {reader}"}
            assert (await client.get("/metrics", headers=read)).status_code == 200
            assert (await client.get("/v1/models", headers=read)).status_code == 403
            remove_key(path, name="ann")
            refused = await client.post("/v1/chat/completions", json=chat())
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert (await client.get("/healthz")).json() == {"status": "ok"}

    tell(tmp_path, story)


def test_the_file_s_schema(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, name="ann", scopes=["infer"])
    record = json.loads(path.read_text())
    assert record["schema"] == "ftray/keys/1"
    assert set(record["keys"][0]) == {"name", "scopes", "sha256", "created_at"}
