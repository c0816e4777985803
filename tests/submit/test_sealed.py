from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.errors import InputError
from ftray.submit.sealed import MOST_BYTES, entry_of, receive, seal, unseal
from ftray.train.launch import own_secrets, passed_on
from ftray.train.secrecy import SECRET_NAMES

VALUE = "hf_not-a-real-token-0123456789"


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,20}", fullmatch=True), st.text(max_size=200), max_size=4))
def test_two_halves_are_the_secrets(values: dict[str, str]) -> None:
    sealed = seal(values)
    assert unseal(sealed.content, sealed.ticket) == values


def test_neither_half_says_anything() -> None:
    sealed = seal({"HF_TOKEN": VALUE})
    assert VALUE.encode() not in sealed.content
    assert b"HF_TOKEN" not in sealed.content
    assert VALUE not in sealed.ticket
    assert VALUE.encode().hex() not in sealed.ticket
    assert VALUE not in repr(sealed)
    assert sealed.content != seal({"HF_TOKEN": VALUE}).content
    assert entry_of({"FTRAY_SECRETS": sealed.ticket}) == sealed.entry


def test_large_secrets_are_refused_by_name_alone() -> None:
    with pytest.raises(InputError) as caught:
        seal({"CERTIFICATE": "x" * MOST_BYTES})
    assert caught.value.kind == "too_large"
    assert caught.value.given == ["CERTIFICATE"]


def test_a_job_without_secrets_receives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTRAY_SECRETS", raising=False)
    before = dict(os.environ)
    receive()
    assert dict(os.environ) == before


def test_secrets_are_not_passed_on_in_the_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", VALUE)
    monkeypatch.setenv("WANDB_API_KEY", VALUE)
    assert VALUE not in passed_on().values()
    assert {"HF_TOKEN", "WANDB_API_KEY"} <= set(own_secrets().names)
    # Those of a submission are received where its workers start.
    monkeypatch.setenv(SECRET_NAMES, "HF_TOKEN,WANDB_API_KEY")
    assert not {"HF_TOKEN", "WANDB_API_KEY"} & {*passed_on(), *own_secrets().names}
