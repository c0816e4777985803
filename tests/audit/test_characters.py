from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.audit.characters import Encoding, TemplateTokens
from ftray.data.config import Source
from ftray.data.conversations import Example, Message
from ftray.data.readers import read_source


def only(finder, *datasets):
    for name, examples in datasets:
        finder.see(name, examples)
    (check,) = finder.checks()
    return check


@pytest.fixture
def clean(make_example):
    return [make_example(f"question {i}", f"answer {i}", row=i) for i in range(300)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("caf\u00e9".encode().decode("cp1252"), "mojibake"),
        ("don\u2019t".encode().decode("cp1252"), "mojibake"),
        ("\u00dcber \u00d4tre".encode().decode("latin-1"), "mojibake"),
        ("12\u00a0\u00b0C".encode().decode("latin-1"), "mojibake"),
        ("\u043f\u0440\u0438\u0432\u0435\u0442".encode().decode("latin-1"), "mojibake"),
        ("\u4e2d\u6587\u4e2d\u6587".encode().decode("latin-1"), "mojibake"),
        ("what \ufffd is", "replacement"),
        ("bell\x07", "control"),
        ("\u00e4 bell\x1b[0m", "control"),
        ("half \ud83d", "surrogate"),
        ("\ue123", "private_use"),
    ],
)
def test_broken_characters_by_kind(text, kind, make_example):
    for turns in ((text, "a"), ("q", text)):
        check = only(Encoding(), ("train", [make_example(*turns, row=7)]))
        assert (check.count, [pointer.row for pointer in check.examples]) == (1, [7])
        assert kind in check.facts["kinds"]


@pytest.mark.parametrize(
    "text",
    [
        "S\u00c3O PAULO \u00c9 LINDA",
        "\u201cAMANH\u00c3\u201d disse ele",
        "caf\u00e9 \u2019tis \u20ac 5 \u2014 \u00dcber \u00ab\u00c2\u00bb",
        "\u043f\u0440\u0438\u0432\u0435\u0442 \u4e2d\u6587 \u0e44\u0e17\u0e22 \u05e2\u05d1",
        "\U0001f469\u200d\U0001f680 emoji \u2764\ufe0f",
        "tab\tand\r\nnew line",
        "\u00e0 la carte\u2026 \u00e9t\u00e9\u2019s \u00ef",
        "\u00d0 is a letter\u201d",
    ],
)
def test_good_text_of_many_languages_is_not_broken(text, make_example):
    assert only(Encoding(), ("train", [make_example(text, text)])).status == "pass"


@given(st.text("\u00e4\u00f6\u00fc\u00df\u00e9\u00e8\u00ea\u00e7\u00f1\u00e5\u00f8abc ", min_size=1))
def test_words_with_accents_pass_and_their_mojibake_does_not(text):
    def count(text):
        row = Example(messages=(), text=text, dataset="train", row=0, fields={}, columns={})
        return only(Encoding(), ("train", [row])).count

    assert count(text) == 0
    assert count(text.encode().decode("latin-1")) == (not text.isascii())


def test_broken_characters_warn_and_fail_above_one_percent(clean, make_example):
    broken = [make_example("q", "\ufffd" * (i + 1), row=300 + i) for i in range(4)]
    assert only(Encoding(), ("train", [*clean, *broken[:3]])).status == "warn"
    check = only(Encoding(), ("test", broken[:1]), ("train", [*clean, *broken]))
    assert check.status == "fail"
    assert check.examples[0].row == 303
    assert only(Encoding(), ("train", clean)).facts == {}


def test_a_constant_system_message_is_one_fault(make_example):
    rows = [make_example("q", "a", row=i, system="caf\u00c3\u00a9") for i in range(100)]
    check = only(Encoding(), ("train", rows))
    assert (check.count, check.examples[0].row) == (1, 0)


def test_a_template_s_constant_words_are_not_looked_at():
    turns = (Message(role="user", content="<|im_start|> Sort: tea"), Message(role="assistant", content="drink"))
    row = Example(messages=turns, dataset="train", row=0, fields={"text": "tea"}, columns={})
    assert only(TemplateTokens(), ("train", [row])).status == "pass"


@pytest.mark.parametrize(
    "token",
    ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<<SYS>>", "<s>", "</s>", "<|endoftext|>", "<|eot_id|>",
     "<start_of_turn>", "<|user|>"],
)  # fmt: skip
def test_control_tokens_are_found_in_prompts_and_answers(token, make_example):
    for turns in ((f"a{token}b", "a"), ("q", f"yes{token}"), ("q", token, "r", "s")):
        check = only(TemplateTokens(), ("train", [make_example(*turns)]))
        assert (check.status, check.facts["kinds"]) == ("fail", {token: 1})


def test_a_tokenizer_s_own_tokens_are_found_and_its_blanks_are_not(clean, make_example):
    rows = [*clean, make_example("q", "a \u2581\u2581 {{SEP}} b", row=300)]
    assert only(TemplateTokens(), ("train", rows)).status == "pass"
    assert only(TemplateTokens(["{{SEP}}", "\n\n", " "]), ("train", rows)).facts["kinds"] == {"{{SEP}}": 1}


def test_the_alpaca_template_s_words_warn_in_prompts_and_fail_in_answers(make_example):
    prompts = [make_example(f"### Instruction:\nDo {i}\n\n### Response:", "Done", row=i) for i in range(50)]
    check = only(TemplateTokens(), ("train", prompts))
    assert (check.status, check.count) == ("warn", 50)
    assert "another one" in check.fix
    answers = [make_example("Do", "Done.\n\n### Instruction:\nDo more", row=50 + i) for i in range(2)]
    check = only(TemplateTokens(), ("train", [*prompts, *answers]))
    assert check.status == "fail"
    assert check.examples[0].row == 50


@pytest.mark.parametrize(
    "text", ["a < b and c | d > e", "x[INSTALL]", "f <| g |> h", "# Heading", "## Instruction", "<sub>2</sub>"]
)
def test_code_and_markup_are_no_control_tokens(text, make_example):
    assert only(TemplateTokens(), ("train", [make_example(text, text)])).status == "pass"


def test_real_files(shared):
    def checks(file):
        examples = read_source(Source(path=str(shared / "data/formats" / file)), name="train", base=shared)
        return only(Encoding(), ("train", examples)), only(TemplateTokens(), ("train", examples))

    for file in ("alpaca_en_demo.json", "sharegpt_dummy_conversation.json", "glaive_toolcall_en_demo.json"):
        assert [check.status for check in checks(file)] == ["pass", "pass"]
    encoding, tokens = checks("dolly_151.jsonl")
    assert (encoding.status, tokens.status, tokens.count) == ("pass", "warn", 151)
