"""Chat templates: the tokenizer's own, a shipped one, or a Jinja file; and a conversation rendered through one.

The shipped templates mark what the assistant says with {% generation %}, the end-of-turn token included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftray.data.conversations import Example
from ftray.data.rows import missing_file
from ftray.errors import InputError

# What the assistant says is its content, then each tool call in <tool_call> tags (Qwen's and Hermes' form).
_SAID = r"""
{%- set said = namespace(text=m.content) %}
{%- for call in m.tool_calls or [] %}
{%- set said.text = said.text + ('\n' if said.text else '') + '<tool_call>\n' %}
{%- set said.text = said.text + (call.function | tojson) + '\n</tool_call>' %}
{%- endfor %}"""

ALPACA = (
    r"""{{- bos_token or '' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}
{{- 'Below is an instruction that describes a task. Write a response that appropriately completes the request.' }}
{%- endif %}
{%- if tools %}{{ '\n\n### Tools:\n' + (tools | tojson) }}{% endif %}
{%- for m in messages %}"""
    + _SAID
    + r"""
{%- if m.role == 'user' %}{{ '\n\n### Instruction:\n' + m.content }}
{%- elif m.role == 'tool' %}{{ '\n\n### Tool result:\n' + m.content }}
{%- elif m.role == 'assistant' %}{{ '\n\n### Response:\n' }}
{%- generation %}{{ said.text + END_OF_TURN }}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\n\n### Response:\n' }}{% endif %}"""
)

CHATML = (
    r"""{{- bos_token or '' }}
{%- if tools %}{{ '<|im_start|>system\n# Tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}"""
    + _SAID
    + r"""
{%- if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}
{%- generation %}{{ said.text + END_OF_TURN }}{% endgeneration %}{{ '\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
)

SHIPPED = {"alpaca": ALPACA, "chatml": CHATML}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A chat template in transformers' Jinja dialect."""

    name: str
    source: str

    @property
    def has_generation_markers(self) -> bool:
        return bool(_GENERATION.search(self.source))

    @property
    def reads_tools(self) -> bool:
        return bool(re.search(r"\btools\b", self.source))

    @property
    def reads_tool_calls(self) -> bool:
        return "tool_calls" in self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A conversation as text, and where in it the assistant speaks (character spans, markers only)."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()


def load_template(name: str, tokenizer: Any, *, base: Path) -> ChatTemplate:
    """Return the template `name`: `tokenizer`, `alpaca`, `chatml` or the path of a Jinja file."""
    if name == "tokenizer":
        return ChatTemplate(name=name, source=_own_template(tokenizer))
    if name in SHIPPED:
        return ChatTemplate(name=name, source=SHIPPED[name].replace("END_OF_TURN", _end_of_turn(name, tokenizer)))
    file = Path(base, Path(name).expanduser())
    if not file.is_file():
        raise missing_file(file, given=name, allowed=["tokenizer", *SHIPPED, "a Jinja file"])
    return ChatTemplate(name=name, source=file.read_text(encoding="utf-8"))


def render(
    template: ChatTemplate,
    tokenizer: Any,
    example: Example,
    *,
    turns: int | None = None,
    add_generation_prompt: bool = False,
    mark: bool = False,
) -> Rendering:
    """Render the first `turns` messages (all by default); `mark` asks for the {% generation %} spans."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(
            conversations=[[message.to_dict() for message in example.messages[:turns]]],
            tools=list(example.tools) or None,
            chat_template=template.source,
            return_assistant_tokens_mask=mark,
            add_generation_prompt=add_generation_prompt,
            **tokenizer.special_tokens_map,
        )
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"the chat template {template.name!r} is not valid Jinja: {error.message} (line {error.lineno})",
            kind="bad_template",
            given=template.name,
            path="data.template",
            line=error.lineno,
            hint="Correct the template, or use `alpaca` or `chatml`.",
        ) from error
    # Templates refuse with raise_exception (a TemplateError), or trip over a key that they expect.
    except (jinja2.TemplateError, TypeError) as error:
        raise InputError(
            f"the chat template {template.name!r} refuses {example.dataset} row {example.row}: {error}",
            kind="template_refused",
            given=[message.role for message in example.messages],
            path="data.template",
            hint="Change the rows to what the model's template takes, or use `template: chatml` (or `alpaca`).",
        ) from error
    texts, spans = rendered
    return Rendering(text=texts[0], spans=tuple((first, last) for first, last in spans[0]) if mark else ())


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the control tokens of a tokenizer: those it names, and those added as special."""
    added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, map(str, tokenizer.all_special_tokens), strict=True))


def _own_template(tokenizer: Any) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise InputError(
            "the model's tokenizer has no chat template",
            kind="no_chat_template",
            given="tokenizer",
            allowed=["alpaca", "chatml", "a Jinja file"],
            hint="Set `data.template: alpaca` (or chatml); a base model has no format of its own to keep.",
            path="data.template",
        ) from error


def _end_of_turn(name: str, tokenizer: Any) -> str:
    """Return the Jinja expression that ends a turn: one token, or the model could not learn to stop."""
    if name == "chatml" and "<|im_end|>" in special_tokens(tokenizer).values():
        return "'<|im_end|>'"
    if tokenizer.eos_token is None:
        raise InputError(
            f"the tokenizer has no end-of-text token, which the template {name!r} ends a turn with",
            kind="no_end_token",
            given=name,
            hint="Set the tokenizer's eos_token, or give a Jinja file that ends the assistant's turn itself.",
            path="data.template",
        )
    return "eos_token"
