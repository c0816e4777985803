from __future__ import annotations

import pytest

from ftray.data.conversations import Example, Message
from ftray.data.templates import load_template, render
from ftray.errors import InputError


def test_chatml(make_tokenizer, make_example, tmp_path):
    tokenizer = make_tokenizer(control=("<s>", "</s>", "<|im_start|>", "<|im_end|>"))
    template = load_template("chatml", tokenizer, base=tmp_path)
    rendering = render(template, tokenizer, make_example("Hi", "Yo", system="S"), mark=True)
    assert rendering.text == (
        "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    )
    assert [rendering.text[a:b] for a, b in rendering.spans] == ["Yo<|im_end|>"]


def test_alpaca(make_tokenizer, make_example, tmp_path):
    tokenizer = make_tokenizer()
    template = load_template("alpaca", tokenizer, base=tmp_path)
    whole = render(template, tokenizer, make_example("Hi", "Yo", "Again", "No", system="S"), mark=True)
    assert whole.text == (
        "<s>S\n\n### Instruction:\nHi\n\n### Response:\nYo</s>\n\n### Instruction:\nAgain\n\n### Response:\nNo</s>"
    )
    assert [whole.text[a:b] for a, b in whole.spans] == ["Yo</s>", "No</s>"]
    prompt = render(template, tokenizer, make_example("Hi", "Yo"), turns=1, add_generation_prompt=True)
    assert prompt.text == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHi\n\n### Response:\n"
    )


def test_chatml_ends_with_eos_where_its_own_token_is_unknown(make_tokenizer, make_example, tmp_path):
    tokenizer = make_tokenizer()
    rendering = render(
        load_template("chatml", tokenizer, base=tmp_path), tokenizer, make_example("Hi", "Yo"), mark=True
    )
    assert rendering.text.endswith("assistant\nYo</s>\n")


@pytest.mark.parametrize("name", ["alpaca", "chatml"])
def test_tools_and_calls_are_written(make_tokenizer, tmp_path, name):
    tokenizer = make_tokenizer()
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = (
        Message(role="user", content="Add."),
        Message(role="assistant", content="Sure.", tool_calls=(call,)),
        Message(role="tool", content="1"),
        Message(role="assistant", content="It is 1."),
    )
    tools = ({"type": "function", "function": {"name": "add"}},)
    example = Example(messages=turns, tools=tools, dataset="d", row=0, fields={}, columns={})
    rendering = render(load_template(name, tokenizer, base=tmp_path), tokenizer, example, mark=True)
    assert '[{"type": "function", "function": {"name": "add"}}]' in rendering.text
    said = [rendering.text[a:b] for a, b in rendering.spans]
    assert said == [
        'Sure.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call></s>',
        "It is 1.</s>",
    ]


def test_a_jinja_file(make_tokenizer, make_example, tmp_path):
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content }};{% endfor %}")
    template = load_template("mine.jinja", make_tokenizer(), base=tmp_path)
    assert render(template, make_tokenizer(), make_example("a", "b")).text == "a;b;"
    assert not template.has_generation_markers


def test_what_cannot_be_used_is_refused(make_tokenizer, make_example, tmp_path):
    tokenizer = make_tokenizer()
    with pytest.raises(InputError) as caught:
        load_template("tokenizer", tokenizer, base=tmp_path)
    assert (caught.value.kind, caught.value.allowed) == ("no_chat_template", ["alpaca", "chatml", "a Jinja file"])
    (tmp_path / "mine.jinja").write_text("{% for %}")
    with pytest.raises(InputError, match="there is no file") as caught:
        load_template("mine.jinj", tokenizer, base=tmp_path)
    assert (caught.value.kind, caught.value.hint) == ("missing_file", "Did you mean 'mine.jinja'?")
    with pytest.raises(InputError, match="not valid Jinja"):
        render(load_template("mine.jinja", tokenizer, base=tmp_path), tokenizer, make_example("a", "b"))
    (tmp_path / "mine.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(InputError, match="row 0: no system role") as caught:
        render(load_template("mine.jinja", tokenizer, base=tmp_path), tokenizer, make_example("a", "b"))
    assert caught.value.kind == "template_refused"
