"""Masks against hand-written expectations: with one token per character a mask reads as text."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.data.conversations import Example, Message
from ftray.data.templates import ChatTemplate, load_template
from ftray.data.tokenization import Tokenization, tokenize_all
from ftray.errors import InputError

MARKED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "B:{% generation %}{{ m.content + eos_token }}{% endgeneration %}\n"
    "{% else %}{{ m.role[0] | upper }}:{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}B:{% endif %}"
).replace("\n", "{{ '\\n' }}")
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
END_OUTSIDE = MARKED.replace(" + eos_token }}{% endgeneration %}", " }}{% endgeneration %}{{ eos_token }}")


@pytest.fixture
def make(make_tokenizer):
    def make(source=MARKED, *, loss_on="all_turns", max_length=1000, tokenizer=None):
        template = ChatTemplate(name="test", source=source)
        return Tokenization(tokenizer or make_tokenizer(), template=template, loss_on=loss_on, max_length=max_length)

    return make


def shown(tokenization, result):
    """Return what is read and what is learned: the text of the example, and its labels with dots in between."""
    tokens = tokenization.tokenizer.convert_ids_to_tokens(result.tokens)
    learned = "".join(token if label else "\0" for token, label in zip(tokens, result.is_label, strict=True))
    return "".join(tokens).replace("Ċ", "\n"), [part for part in learned.replace("Ċ", "\n").split("\0") if part]


def text_example(text, row=0):
    return Example(messages=(), text=text, dataset="d", row=row, fields={}, columns={})


@pytest.mark.parametrize("source", [MARKED, UNMARKED, END_OUTSIDE])
def test_all_assistant_turns_are_learned_with_their_end(make, make_example, source):
    tokenization = make(source)
    result = tokenization.encode(make_example("Hi", "Yo", "Why", "No", system="Be"))
    assert shown(tokenization, result) == (
        "<s>S:Be\nU:Hi\nB:Yo</s>\nU:Why\nB:No</s>\n",
        ["Yo</s>", "No</s>"],
    )
    assert result.prompt_length == len("_S:Be\nU:Hi\nB:Yo_\nU:Why\nB:")
    assert (result.tokens.dtype, result.is_label.dtype) == (np.int32, np.bool_)


@pytest.mark.parametrize("source", [MARKED, UNMARKED, END_OUTSIDE])
def test_only_the_last_turn(make, make_example, source):
    tokenization = make(source, loss_on="last_turn")
    assert shown(tokenization, tokenization.encode(make_example("Hi", "Yo", "Why", "No")))[1] == ["No</s>"]


def test_the_generation_prompt_is_what_training_saw(make, make_example):
    tokenization = make()
    example = make_example("Hi", "Yo", "Why", "No")
    result = tokenization.encode(example)
    assert tokenization.encode_prompt(example) == result.tokens[: result.prompt_length].tolist()
    assert tokenization.stop_token_ids == (tokenization.tokenizer.eos_token_id,)


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.text(min_size=1)), min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_markers_and_prefixes_agree_on_any_text(make_tokenizer, talk):
    tokenizer = make_tokenizer()
    turns = [turn for asked, answer in talk for turn in (asked, answer.encode("utf-8", "ignore").decode() or "x")]
    roles = ["user", "assistant"] * len(talk)
    messages = tuple(Message(role=role, content=turn) for role, turn in zip(roles, turns, strict=True))
    example = Example(messages=messages, dataset="d", row=0, fields={}, columns={})
    results = [
        Tokenization(
            tokenizer, template=ChatTemplate(name="t", source=source), loss_on="all_turns", max_length=10**6
        ).encode(example)
        for source in (MARKED, UNMARKED, END_OUTSIDE)
    ]
    for result in results[1:]:
        assert result.tokens.tolist() == results[0].tokens.tolist()
        assert result.is_label.tolist() == results[0].is_label.tolist()
    learned = tokenizer.decode(results[0].tokens[results[0].is_label])
    assert learned == "".join(turn + "</s>" for turn in turns[1::2])


def test_a_text_is_learned_whole(make):
    tokenization = make()
    result = tokenization.encode(text_example("abc"))
    assert shown(tokenization, result) == ("<s>abc</s>", ["abc</s>"])
    assert result.prompt_length == 1
    assert tokenization.encode_prompt(text_example("abc")) == [tokenization.tokenizer.bos_token_id]


def test_texts_need_no_template(make_tokenizer):
    tokenization = Tokenization(make_tokenizer(), template=None, loss_on="all_turns", max_length=9)
    result = tokenize_all([text_example("abc")], tokenization, on_overlong="drop", max_dropped=0, name="d")
    assert (len(result.examples), result.notes) == (1, [])
    assert tokenization.stop_token_ids == (tokenization.tokenizer.eos_token_id,)


def test_overlong_rows_are_dropped_and_counted_never_cut(make, make_example):
    examples = [make_example("Hi", "x" * length, row=row) for row, length in enumerate([5, 500, 5, 5])]
    tokenization = make(max_length=100)
    result = tokenize_all(examples, tokenization, on_overlong="drop", max_dropped=0.25, name="train")
    assert [example.row for example in result.examples] == [0, 2, 3]
    assert [(drop.row, drop.reason, drop.tokens) for drop in result.dropped] == [(1, "overlong", 510)]
    with pytest.raises(InputError, match=r"1 of 4 rows of 'train'.*have 510 tokens, the limit is 100") as caught:
        tokenize_all(examples, tokenization, on_overlong="drop", max_dropped=0.24, name="train")
    assert caught.value.kind == "too_many_dropped"
    with pytest.raises(InputError) as caught:
        tokenize_all(examples, tokenization, on_overlong="error", max_dropped=1, name="train")
    assert caught.value.kind == "overlong"


def test_rows_without_labels_are_dropped_and_counted(make, make_example):
    source = MARKED.replace("m.content + eos_token", "m.content")
    examples = [make_example("Hi", answer, row=row) for row, answer in enumerate(["Yo", ""])]
    result = tokenize_all(examples, make(source), on_overlong="drop", max_dropped=0.5, name="train")
    assert [(drop.row, drop.reason) for drop in result.dropped] == [(1, "no_labels")]


def test_a_turn_without_an_end_is_noted(make, make_example):
    tokenization = make(MARKED.replace("m.content + eos_token", "m.content"))
    result = tokenize_all([make_example("Hi", "Yo")], tokenization, on_overlong="drop", max_dropped=0, name="d")
    assert tokenization.end_of_turn_token is None
    assert "not taught to stop" in result.notes[0]


def test_unseen_tools_are_noted_once(make, make_example):
    example = dataclasses.replace(make_example("Hi", "Yo"), tools=({"type": "function", "function": {"name": "f"}},))
    result = tokenize_all([example] * 3, make(), on_overlong="drop", max_dropped=0, name="d")
    assert len(result.notes) == 1
    assert "3 rows" in result.notes[0]


def test_markers_around_nothing_are_refused(make, make_example):
    source = MARKED.replace("m.role == 'assistant'", "m.role == 'narrator'")
    with pytest.raises(InputError) as caught:
        make(source).encode(make_example("Hi", "Yo"))
    assert caught.value.kind == "no_assistant_mask"


def test_a_template_that_rewrites_the_past_is_refused(make, make_example):
    source = UNMARKED.replace(
        "{{ m.content + eos_token }}", "{{ ('(last)' if loop.last else '') + m.content + eos_token }}"
    )
    with pytest.raises(InputError) as caught:
        make(source).encode(make_example("Hi", "Yo", "Why", "No"))
    assert caught.value.kind == "template_not_prefix"
    assert shown(make(), make(source, loss_on="last_turn").encode(make_example("Hi", "Yo")))[1] == ["(last)Yo</s>"]


def test_a_token_across_prompt_and_answer_is_counted_and_refused(make, make_tokenizer, make_example):
    tokenization = make(tokenizer=make_tokenizer(merges=((":", "Y"),)))
    examples = [make_example("Hi", answer, row=row) for row, answer in enumerate(["Yo", "No"])]
    result = tokenize_all(examples, tokenization, on_overlong="drop", max_dropped=0.5, name="d")
    assert [(drop.row, drop.reason) for drop in result.dropped] == [(0, "prompt_not_prefix")]
    for refuse in (
        lambda: tokenization.encode(examples[0]),
        lambda: tokenize_all(examples, tokenization, on_overlong="drop", max_dropped=0.1, name="d"),
    ):
        with pytest.raises(InputError) as caught:
            refuse()
        assert caught.value.kind == "prompt_not_prefix"
        assert "one token" in caught.value.hint


def test_an_empty_answer_still_ends(make, make_example):
    tokenization = make()
    assert shown(tokenization, tokenization.encode(make_example("Hi", "")))[1] == ["</s>"]


@pytest.fixture(scope="module")
def stories(shared):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "models" / "stories3M")


def test_stories_token_by_token(stories, make_example, tmp_path):
    template = load_template("tokenizer", stories, base=tmp_path)
    tokenization = Tokenization(stories, template=template, loss_on="all_turns", max_length=512)
    result = tokenization.encode(make_example("Which intent is this? play a song", "play music"))
    tokens = "<s> ▁U ser : ▁Wh ich ▁int ent ▁is ▁this ? ▁play ▁a ▁song <0x0A> B ot : ▁play ▁music <s>"
    assert " ".join(stories.convert_ids_to_tokens(result.tokens)) == tokens
    assert [i for i, label in enumerate(result.is_label) if label] == [18, 19, 20]
    assert result.prompt_length == 18
    assert tokenization.stop_token_ids == (1,)


def test_stories_masks_equal_transformers_own(stories, make_example, tmp_path):
    template = load_template("tokenizer", stories, base=tmp_path)
    tokenization = Tokenization(stories, template=template, loss_on="all_turns", max_length=512)
    example = make_example("Hi, Tim!", "Once upon é time", "More?", "The end.\n", system="Be kind")
    expected = stories.apply_chat_template(
        [message.to_dict() for message in example.messages], return_dict=True, return_assistant_tokens_mask=True
    )
    result = tokenization.encode(example)
    assert result.tokens.tolist() == expected["input_ids"]
    assert result.is_label.astype(int).tolist() == expected["assistant_masks"]
