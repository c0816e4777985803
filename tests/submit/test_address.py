from __future__ import annotations

from pathlib import Path

import pytest

from ftray.errors import InputError
from ftray.submit.address import DEFAULT_ADDRESS, auth_token, is_own, job_server


@pytest.mark.parametrize(
    ("flag", "environment", "url"),
    [
        (None, {}, DEFAULT_ADDRESS),
        ("http://head:8265/", {"RAY_ADDRESS": "http://other:8265"}, "http://head:8265"),
        ("head:8265", {}, "http://head:8265"),
        ("https://ray.example.com", {}, "https://ray.example.com"),
        (None, {"RAY_ADDRESS": "http://a:8265"}, "http://a:8265"),
        (None, {"RAY_ADDRESS": "http://a:8265", "RAY_API_SERVER_ADDRESS": "http://b:8265"}, "http://b:8265"),
        ("auto", {}, "auto"),
    ],
)
def test_the_flag_is_stronger_than_the_environment(flag: str | None, environment: dict[str, str], url: str) -> None:
    assert job_server(flag, environment) == url


@pytest.mark.parametrize("given", ["ray://head:10001", "http://", "s3://bucket"])
def test_other_addresses_are_refused(given: str) -> None:
    with pytest.raises(InputError) as caught:
        job_server(given, {})
    assert caught.value.kind == "bad_address"
    assert "8265" in caught.value.hint


def test_the_token_comes_from_rays_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert auth_token({}) is None
    assert auth_token({"RAY_AUTH_TOKEN": "given", "RAY_AUTH_TOKEN_PATH": str(file)}) == "given"
    assert auth_token({"RAY_AUTH_TOKEN_PATH": str(file)}) == "from-file"
    assert auth_token({"RAY_AUTH_MODE": "token"}) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home")
    assert auth_token({"RAY_AUTH_MODE": "token"}) == "from-home"
    assert auth_token({}) is None


def test_a_token_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        auth_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
    assert caught.value.kind == "bad_token"


def test_an_address_of_this_machine_is_told_from_others() -> None:
    assert is_own("127.0.0.1")
    assert not is_own("192.0.2.77")
