from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ftray.errors import InputError
from ftray.submit.contact import first_answer


class Polite(http.server.BaseHTTPRequestHandler):
    """A web server that is no Ray."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Polite) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_stranger_is_no_cluster(stranger: str) -> None:
    with pytest.raises(InputError, match="no job server of Ray") as caught:
        first_answer(stranger, {})
    assert caught.value.kind == "no_cluster"


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9",  # refuses
        "http://192.0.2.1:8265",  # a documentation address: drops, or is unreachable
        "http://no-such-host.invalid:8265",
    ],
)
def test_nobody_is_waited_for_ten_seconds_at_most(address: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        first_answer(address, {})
    assert time.monotonic() - began < 10
    assert caught.value.kind == "no_cluster"
    assert address in caught.value.message


def test_one_who_takes_the_call_and_says_nothing_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(InputError, match="nobody answers"):
            first_answer(f"http://127.0.0.1:{silent.getsockname()[1]}", {})
        assert time.monotonic() - began < 10
