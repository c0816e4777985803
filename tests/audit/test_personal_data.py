from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.audit.personal_data import PersonalData, is_iban, is_luhn, personal_kinds
from ftray.data.config import Source
from ftray.data.conversations import Example, Message
from ftray.data.readers import read_source


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+x@mail.example.co.uk, please", "email"),
        ("call +44 20 7946 0958 now", "phone"),
        ("(212) 736-5000", "phone"),
        ("tel. 212-736-5000.", "phone"),
        ("+4915112345678", "phone"),
        ("ring 030 12345678 or come", "phone"),
        ("card 4111 1111 1111 1111", "credit_card"),
        ("5500005555555559", "credit_card"),
        ("378282246310005 amex", "credit_card"),
        ("GB29 NWBK 6016 1331 9268 19", "iban"),
        ("IBAN DE89370400440532013000 please", "iban"),
        ("ssn 536-90-4399", "us_ssn"),
        ("host 93.184.216.34:80", "ipv4"),
        ("-----BEGIN RSA PRIVATE KEY-----", "secret"),
        ("key sk-" + "aB3" * 10, "secret"),
        ("AKIAIOSFODNN7EXAMPLE", "secret"),
        ("ghp_" + "a1" * 18, "secret"),
    ],
)
def test_each_kind_is_found(text, kind):
    assert personal_kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "pi is 3.14159265358979323846",
        "in 1990-2000 and 2001 - 2010, on 2021-05-03 12:30",
        "version 1.2.3.4, v10.11.12.13 and section 2.3.1.4",
        "127.0.0.1 and 255.255.255.0",
        "4111 1111 1111 1112 has a wrong check digit",
        "GB28 NWBK 6016 1331 9268 19 is no IBAN",
        "1,234,567,890 people; 10 000 000 items; 1234567890",
        "@handle and user@localhost and a @ b.com",
        "ask-me-anything-about-this-long-topic sk-learn risk-averse",
        "0000 0000 0000 0000",
        "5 + 12345678 = 12345683, 3+1234567890",
        "000-12-3456 and 666-12-3456",
        "order 12-3456789 of 300-1234",
        "2x2 12 24 36 48 60 72 84 96",
    ],
)
def test_other_numbers_and_words_are_not_personal(text):
    assert personal_kinds(text) == []


def test_the_matched_text_is_never_given_out(make_example):
    secret = "sk-Zy9Zy9Zy9Zy9Zy9Zy9Zy9Zy9"
    rows = [
        make_example("who?", f"jane@corp.com, {secret}", row=3),
        make_example("who?", "jane@corp.com", row=4, dataset="test"),
        make_example("who?", "nobody", row=5),
    ]
    finder = PersonalData()
    finder.see("train", rows)
    (check,) = finder.checks()
    assert (check.status, check.count, check.facts["kinds"]) == ("warn", 2, {"email": 2, "secret": 1})
    assert [pointer.row for pointer in check.examples] == [3, 4]
    written = json.dumps(check.to_record())
    assert "corp" not in written
    assert secret not in written


def test_arguments_of_tool_calls_and_texts_are_looked_at():
    call = {"type": "function", "function": {"name": "mail", "arguments": {"to": ["jane@corp.com"]}}}
    turns = (Message(role="user", content="mail her"), Message(role="assistant", content="", tool_calls=(call,)))
    rows = [
        Example(messages=turns, dataset="train", row=0, fields={"prompt": "mail her"}, columns={}),
        Example(messages=(), text="by joe@corp.com", dataset="train", row=1, fields={}, columns={}),
    ]
    finder = PersonalData()
    finder.see("train", rows)
    (check,) = finder.checks()
    assert check.facts["kinds"] == {"email": 2}


@given(st.from_regex(r"[0-9]{11,18}", fullmatch=True))
def test_exactly_one_last_digit_is_the_luhn_digit(digits):
    assert sum(is_luhn(digits + str(last)) for last in range(10)) == 1


@given(st.from_regex(r"[A-Z0-9]{11,30}", fullmatch=True), st.sampled_from(["DE", "GB", "FR"]))
def test_exactly_one_pair_of_check_digits_makes_an_iban(account, country):
    assert sum(is_iban(f"{country}{check:02d}{account}") for check in range(2, 99)) == 1


@given(st.text(max_size=300))
def test_any_text_can_be_looked_at(text):
    assert set(personal_kinds(text)) <= {"email", "phone", "credit_card", "iban", "us_ssn", "ipv4", "secret"}


def test_real_intents_have_none(shared):
    for file in ("snips/train.jsonl", "clinc150/train.jsonl"):
        source = Source(path=str(shared / "data" / file), prompt="{text}", completion="{intent}")
        finder = PersonalData()
        finder.see("train", read_source(source, name="train", base=shared))
        assert finder.checks()[0].count == 0


def test_a_row_of_a_million_characters_takes_no_longer_than_its_length():
    text = "93.184.216.34 " * 70_000
    began = time.perf_counter()
    assert personal_kinds(text) == ["ipv4"]
    assert time.perf_counter() - began < 5


def test_what_one_kind_has_taken_is_no_other():
    assert personal_kinds("4111-1111-1111-1111 and +44 20 7946 0958") == ["credit_card", "phone"]
    assert personal_kinds("4111 1111 1111 1111") == ["credit_card"]
