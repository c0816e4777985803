"""Where RAY_ADDRESS leads: what is no address, and who answers there that is no Ray."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ftray import doctor
from ftray.errors import InputError
from ftray.train import address
from ftray.train.address import HTTP2_GREETING, ray_address, refused, require_answer


@pytest.fixture(autouse=True)
def without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USE_TLS", raising=False)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def place(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def answer(server: socket.socket, content: bytes) -> threading.Thread:
    """Answer the first who greets."""

    def run() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(len(HTTP2_GREETING), socket.MSG_WAITALL)
            connection.sendall(content)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("given", ["head:6379", "10.0.0.1:6379", "[::1]:6379", "auto", "http://head:8265"])
def test_addresses(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert ray_address() == given


@pytest.mark.parametrize("given", ["", "local", None])
def test_no_address(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_ADDRESS", given)
    assert ray_address() is None


@pytest.mark.parametrize(
    "given",
    [
        "head", "http://head:8265", "ray://head:10001", "head:port", "head:99999", ":6379", "head:0", "u@head:6379",
        "head:6379/x", "head:6379?x", "head:6379\n", " head:6379",
    ],
)  # fmt: skip
def test_what_no_process_joins_at(given: str) -> None:
    with pytest.raises(InputError, match="is no address that a process joins") as caught:
        require_answer(given)
    assert (caught.value.kind, caught.value.given) == ("bad_address", given)
    assert "HOST:PORT" in str(caught.value.allowed)
    assert "ftray submit" in caught.value.hint


@pytest.mark.parametrize("name", ["nowhere.invalid", "a..b", "x" * 70 + ".invalid"])
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(InputError, match="no Ray cluster answers at") as caught:
        require_answer(f"{name}:6379")
    assert caught.value.kind == "no_cluster"


def test_nobody_listens(listening: socket.socket) -> None:
    nobody = place(listening)
    listening.close()
    began = time.monotonic()
    with pytest.raises(InputError, match=f"no Ray cluster answers at {nobody}") as caught:
        require_answer(nobody)
    assert caught.value.kind == "no_cluster"
    assert time.monotonic() - began < 5


def test_somebody_listens_and_says_nothing(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ANSWER_SECONDS", 0.2)
    with pytest.raises(InputError, match="timed out"):
        require_answer(place(listening))


SETTINGS_FRAME = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x3f\xff\xff"
WEB = b"HTTP/1.1 400 Bad Request\r\n\r\n"


@pytest.mark.parametrize(
    ("content", "said"), [(WEB, "a web server"), (b"SSH-2.0-OpenSSH\r\n", "is no Ray"), (b"", "is no Ray")]
)
def test_others_are_no_ray(listening: socket.socket, content: bytes, said: str) -> None:
    thread = answer(listening, content)
    with pytest.raises(InputError, match=said) as caught:
        require_answer(place(listening))
    thread.join()
    assert caught.value.kind == "no_cluster"


def test_settings_are_the_greeting_of_a_cluster(listening: socket.socket) -> None:
    thread = answer(listening, SETTINGS_FRAME)
    require_answer(place(listening))
    thread.join()


def test_what_is_encrypted_is_left_to_ray(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    require_answer(place(listening))


def test_the_doctor_looks_who_listens(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(listening)
    monkeypatch.setenv("RAY_ADDRESS", there)
    answer(listening, SETTINGS_FRAME)
    assert (doctor._ray()["status"], there in doctor._ray()["detail"]) == ("ok", True)
    listening.close()
    assert (doctor._ray()["status"], there in doctor._ray()["detail"]) == ("fail", True)


def failed(reason: str) -> ConnectionError:
    """Return what Ray raises where it cannot join: the reason is the error's cause."""
    error = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    error.__cause__ = RuntimeError(reason)
    return error


def test_another_version() -> None:
    reason = "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.9\nThis process ..."
    other = refused("head:6379", RuntimeError(reason))
    assert other.kind == "version_mismatch"
    assert "Ray: 2.59.0 Python: 3.11.9" in str(other)


def test_another_machine() -> None:
    reason = "No node info found matching attributes: '' when trying to resolve node to connect to."
    elsewhere = refused("head:6379", failed(reason))
    assert (elsewhere.kind, str(elsewhere)) == ("no_cluster", "this machine is no node of the cluster at head:6379")
    assert "ftray submit" in elsewhere.hint


def test_no_ray_on_this_machine() -> None:
    none = refused("auto", ConnectionError("Could not find any running Ray instance. Please specify ..."))
    assert (none.kind, str(none)) == ("no_cluster", "there is no Ray on this machine")


@pytest.mark.parametrize(("mode", "given"), [("token", "a token"), ("", "no token")])
def test_a_stranger_is_told_about_tokens(mode: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    stranger = refused("head:6379", failed("GCS said no"))
    assert (stranger.kind, stranger.given) == ("bad_token", given)
    assert "GCS said no" in str(stranger)
