"""From what is asked to the tokens that a model reads, and the tokens that end its answer.

A chat is rendered with the template that the adapter was trained with, a text is tokenized as the tokenizer frames it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftray.data.conversations import Example, Message
from ftray.data.templates import ChatTemplate, load_template, render
from ftray.data.tokenization import Tokenization
from ftray.errors import InputError
from ftray.serve.asking import Ask

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an answer starts from."""

    tokens: Sequence[int]
    limit: int
    """Most tokens of the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How one adapter, or the base, is spoken to."""

    template: ChatTemplate | None
    """None: it has no format for chats."""
    stops: frozenset[int]
    """Tokens that end its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn(Message):
    """A message with all that a template may ask of it."""

    whole: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.whole)


class Prompts:
    """Reads what is asked of one base and its adapters. Any thread may ask."""

    def __init__(
        self, tokenizer: Any, *, vocabulary: int, ends: GenerationConfig | None, positions: int | None
    ) -> None:
        """Use this tokenizer from now on.

        `vocabulary`: the tokens that the model can read; `ends`: its own word on what ends an answer; `positions`: the
        longest prompt and answer together.
        """
        self._tokenizer = tokenizer
        # Tokenizers do not bear two threads at a time.
        self._lock = threading.Lock()
        self._positions = positions
        self._vocabulary = vocabulary
        end = None if ends is None else ends.eos_token_id
        self._ends = frozenset(end if isinstance(end, list) else [] if end is None else [end])
        self.format = self._format_of(_own_template(tokenizer))

    def format_of(self, record: Mapping[str, Any]) -> Format:
        """Return the format of an adapter's record: its template and stop tokens, else the base's."""
        written = record.get("template")
        template = self.format.template
        # Where it was the tokenizer's own, the base has it.
        if written is not None and written["source"] is not None:
            template = ChatTemplate(name=str(written["name"]), source=str(written["source"]))
        stops = record.get("stop_token_ids")
        if stops is not None:
            return Format(template=template, stops=frozenset(map(int, stops)))
        return self._format_of(template)

    def read(self, ask: Ask, form: Format) -> Reading:
        """Return the prompt's tokens and the answer's limit. Raises InputError for what the model cannot read."""
        assert (ask.messages is None) != (ask.prompt is None), "exactly one of messages and prompt is asked"
        path = "messages" if ask.messages is not None else "prompt"
        if ask.messages is not None:
            tokens: Sequence[int] = self._encode(self._rendered(ask, form), special=False)
        elif isinstance(ask.prompt, str):
            begins = self._tokenizer.bos_token
            tokens = self._encode(ask.prompt, special=not (begins and ask.prompt.startswith(begins)))
        else:
            tokens = ask.prompt or ()
        self._require_tokens(tokens, path)
        return Reading(tokens=tokens, limit=self._limit(len(tokens), ask.sampling.max_tokens, path))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        with self._lock:
            encoded = self._tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)
        tokens: list[int] = encoded["input_ids"]
        return tokens

    def _rendered(self, ask: Ask, form: Format) -> str:
        assert ask.messages is not None
        if form.template is None:
            raise InputError(
                "this model has no chat template, so that it cannot read messages",
                kind="no_chat_template",
                given=f"{len(ask.messages)} messages",
                allowed="a prompt",
                hint="Ask /v1/completions with a prompt, or name an adapter that was trained with a template.",
                path="messages",
            )
        turns = tuple(
            _Turn(role=message["role"], content=str(message.get("content") or ""), whole=message)
            for message in ask.messages
        )
        example = Example(
            messages=turns, tools=tuple(map(dict, ask.tools)), dataset="messages", row=0, fields={}, columns={}
        )
        try:
            return render(form.template, self._tokenizer, example, add_generation_prompt=True).text
        except InputError as error:
            raise InputError(
                f"the model's chat template does not take these messages: {error.__cause__ or error}",
                kind="template_refused",
                given=[turn.role for turn in turns],
                allowed="messages in the order that the model was trained with",
                hint="Most templates want one system message at most, then user and assistant in turn.",
                path="messages",
            ) from error

    def _require_tokens(self, tokens: Sequence[int], path: str) -> None:
        if not tokens:
            raise InputError(
                "the prompt is empty", kind="empty_prompt", given=0, allowed="1 token or more", path=path,
                hint="Send a prompt of at least one token.",
            )  # fmt: skip
        unknown = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
        if unknown is not None:
            raise InputError(
                f"the model has no token {unknown}",
                kind="unknown_token",
                given=unknown,
                allowed=f"0 to {self._vocabulary - 1}",
                hint="Send text, or tokens of this model's tokenizer.",
                path=path,
            )

    def _limit(self, prompt: int, wanted: int | None, path: str) -> int:
        """Return the most tokens of the answer."""
        positions = self._positions
        if positions is None:
            if wanted is None:
                raise InputError(
                    "this model's answers have no end of their own",
                    kind="no_limit",
                    given=None,
                    allowed="a number of tokens",
                    hint="Send max_tokens.",
                    path="max_tokens",
                )
            return wanted
        # The last token needs no position.
        room = positions - prompt + 1
        if room < 1:
            raise InputError(
                f"the prompt has {prompt} tokens, and the model reads {positions}",
                kind="prompt_too_long",
                given=prompt,
                allowed=f"at most {positions} tokens",
                hint="Shorten the prompt.",
                path=path,
            )
        if wanted is not None and wanted > room:
            raise InputError(
                f"a prompt of {prompt} tokens leaves room for {room}, and {wanted} are asked for",
                kind="max_tokens_too_large",
                given=wanted,
                allowed=f"1 to {room}",
                hint="Lower max_tokens, or shorten the prompt.",
                path="max_tokens",
            )
        return room if wanted is None else wanted

    def _format_of(self, template: ChatTemplate | None) -> Format:
        """Return the format of a template: its end of turn, and what the model and its tokenizer call an end, stop."""
        with self._lock:
            framing = Tokenization(self._tokenizer, template=template, loss_on="all_turns", max_length=1)
            try:
                ends = framing.stop_token_ids
            except InputError:
                # A template that does not say where the assistant speaks: no end of turn is known.
                ends = () if self._tokenizer.eos_token_id is None else (self._tokenizer.eos_token_id,)
        return Format(template=template, stops=self._ends | frozenset(ends))


def vocabulary_of(model: PreTrainedModel) -> int:
    """Return how many tokens the model can read."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _own_template(tokenizer: Any) -> ChatTemplate | None:
    if tokenizer.chat_template is None:
        return None
    from pathlib import Path

    return load_template("tokenizer", tokenizer, base=Path())
