"""Examples to tokens with their loss mask: the assistant's turns, the end-of-turn token included, and nothing else.

Text is tokenized in batches, and token offsets turn the character spans of `spans.py` into a mask. Nothing is ever
cut: an example that does not fit, or whose prompt is tokenized differently at inference, is dropped and counted.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ftray.data.conversations import Example, Message
from ftray.data.spans import LossOn, Scribe, Script
from ftray.data.templates import ChatTemplate, special_tokens
from ftray.errors import InputError

DropReason = Literal["overlong", "no_labels", "prompt_not_prefix"]
_BATCH = 1000  # examples per call of the tokenizer: memory, not speed
_REMEDIES: dict[DropReason, str] = {
    "overlong": "Raise data.max_length (up to the model's limit), shorten the rows, or allow more with "
    "data.max_dropped. Rows are never cut.",
    "no_labels": "The template shows nothing of the rows' answers to the model: check the answers and the template.",
    "prompt_not_prefix": "The tokenizer joins the end of the prompt with the start of the answer into one token, or "
    "the template renders the prompt otherwise when an answer follows; the model would never see at inference what it "
    "learned. Use another template (`chatml`, `alpaca`), or answers that do not begin with a blank.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedExample:
    """One example as the model sees it."""

    tokens: NDArray[np.int32]
    is_label: NDArray[np.bool_]
    """Which tokens are learned; never the first, which nothing predicts."""
    prompt_length: int
    """Tokens before the final answer."""
    dataset: str
    row: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """An example that is not used, and why."""

    dataset: str
    row: int
    digest: str
    reason: DropReason
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """A dataset as tokens, what was left out of it, and what the user should know."""

    examples: list[TokenizedExample]
    dropped: list[Dropped]
    notes: list[str]


class Tokenization:
    """How a job turns examples into tokens: one tokenizer, one template, one mask.

    `template` may be None when all examples are plain texts.
    """

    def __init__(self, tokenizer: Any, *, template: ChatTemplate | None, loss_on: LossOn, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                f"the tokenizer {type(tokenizer).__name__} does not say which characters a token covers",
                kind="slow_tokenizer",
                allowed="a tokenizer with a tokenizer.json (a fast tokenizer)",
                hint="Convert it with transformers' AutoTokenizer and save it next to the model.",
            )
        self.tokenizer = tokenizer
        self.template = template
        self.loss_on = loss_on
        self.max_length = max_length
        self._scribe = Scribe(tokenizer, template, loss_on=loss_on) if template else None

    def encode(self, example: Example) -> TokenizedExample:
        """Tokenize one example; what `tokenize_all` would drop is an InputError of that kind."""
        (result,) = self.encode_batch([example])
        if isinstance(result, TokenizedExample):
            return result
        raise InputError(
            f"{example.dataset} row {example.row} ({result.tokens} tokens) cannot be used: {result.reason}",
            kind=result.reason,
            given=result.tokens,
            allowed=f"at most {self.max_length} tokens" if result.reason == "overlong" else None,
            hint=_REMEDIES[result.reason],
        )

    def encode_batch(self, examples: Sequence[Example]) -> list[TokenizedExample | Dropped]:
        """Tokenize examples in one call of the tokenizer."""
        if not examples:
            return []
        scripts = [self._script(example) for example in examples]
        whole = self._tokenize([script.whole for script in scripts], offsets=True)
        prompts = self._tokenize([script.prompt for script in scripts])["input_ids"]
        results = []
        for index, example in enumerate(examples):
            ids = whole["input_ids"][index]
            if example.text is not None:
                results.append(self._frame_text(example, ids))
            else:
                offsets = whole["offset_mapping"][index]
                results.append(self._mask(example, scripts[index], ids, offsets, prompts[index]))
        return results

    def encode_prompt(self, example: Example) -> list[int]:
        """Return the tokens that generation starts from: everything before the final answer."""
        if example.text is not None:
            return _present(self.tokenizer.bos_token_id)
        ids: list[int] = self._tokenize([self._writer(example).prompt(example)])["input_ids"][0]
        return ids

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an assistant turn: the one the template ends it with, and the tokenizer's end of text."""
        return tuple(sorted({*_present(self.end_of_turn_token), *_present(self.tokenizer.eos_token_id)}))

    @cached_property
    def end_of_turn_token(self) -> int | None:
        """The control token that the mask teaches the model to end a turn with; None when there is none."""
        if self._scribe is None:
            return None
        turn = (Message(role="user", content="Yes or no?"), Message(role="assistant", content="Yes"))
        script = self._scribe.script(Example(messages=turn, dataset="probe", row=0, fields={}, columns={}))
        encoded = self._tokenize([script.whole], offsets=True)
        starts, _ = _borders(encoded["offset_mapping"][0])
        labels = np.flatnonzero(_in_spans(starts, script.spans))
        last = encoded["input_ids"][0][labels[-1]] if len(labels) else None
        return last if last in special_tokens(self.tokenizer) else None

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Return what the user should know about this template and these examples: once, not per row."""
        if self.template is None or all(example.text is not None for example in examples):
            return []
        name, notes = self.template.name, []
        if self.end_of_turn_token is None:
            notes.append(
                f"The template {name!r} ends the assistant's turn with no control token, so the model is not taught to "
                "stop and answers run to max_new_tokens: end the turn with eos_token inside the generation markers."
            )
        with_tools = sum(bool(example.tools) for example in examples)
        if with_tools and not self.template.reads_tools:
            notes.append(
                f"The template {name!r} does not show tools to the model: those of {with_tools} rows are unseen."
            )
        with_calls = sum(any(turn.tool_calls for turn in example.messages) for example in examples)
        if with_calls and not self.template.reads_tool_calls:
            notes.append(
                f"The template {name!r} does not write tool calls: those of {with_calls} rows are not learned."
            )
        return notes

    def _script(self, example: Example) -> Script:
        if example.text is not None:
            return Script(whole=example.text, prompt="", spans=())
        return self._writer(example).script(example)

    def _writer(self, example: Example) -> Scribe:
        assert self._scribe is not None, f"{example.dataset} row {example.row} is a conversation: it needs a template"
        return self._scribe

    def _tokenize(self, texts: list[str], *, offsets: bool = False) -> dict[str, Any]:
        encoded: dict[str, Any] = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=offsets,
            verbose=False,
        )
        return encoded

    def _mask(
        self, example: Example, script: Script, ids: list[int], offsets: list[tuple[int, int]], prompt: list[int]
    ) -> TokenizedExample | Dropped:
        starts, ends = _borders(offsets)
        is_label = _in_spans(starts, script.spans)
        last = _in_spans(starts, [span for span in script.spans if span[0] >= len(script.prompt)])
        # A token of no width (a blank that the offsets leave out) at the border belongs to the prompt.
        is_label[: len(prompt)] &= ~last[: len(prompt)]
        is_prefix = len(prompt) < len(ids) and ids[: len(prompt)] == prompt
        is_joined = any(((starts < first) & (ends > first)).any() for first, _ in script.spans)
        reason: DropReason | None = None if is_prefix and not is_joined else "prompt_not_prefix"
        return self._finish(example, ids, is_label, len(prompt), reason)

    def _frame_text(self, example: Example, ids: list[int]) -> TokenizedExample | Dropped:
        """Put begin and end of text around a plain text; all of it is learned."""
        first, last = _present(self.tokenizer.bos_token_id), _present(self.tokenizer.eos_token_id)
        framed = [*first, *ids, *last]
        return self._finish(example, framed, np.ones(len(framed), dtype=np.bool_), len(first), None)

    def _finish(
        self,
        example: Example,
        ids: list[int],
        is_label: NDArray[np.bool_],
        prompt_length: int,
        reason: DropReason | None,
    ) -> TokenizedExample | Dropped:
        is_label[:1] = False
        if len(ids) > self.max_length:
            reason = "overlong"
        elif reason is None and not is_label.any():
            reason = "no_labels"
        if reason is not None:
            return Dropped(
                dataset=example.dataset, row=example.row, digest=example.digest, reason=reason, tokens=len(ids)
            )
        return TokenizedExample(
            tokens=np.array(ids, dtype=np.int32),
            is_label=is_label,
            prompt_length=prompt_length,
            dataset=example.dataset,
            row=example.row,
            digest=example.digest,
        )


def tokenize_all(
    examples: Sequence[Example],
    tokenization: Tokenization,
    *,
    on_overlong: Literal["drop", "error"],
    max_dropped: float,
    name: str,
) -> Tokenized:
    """Tokenize a dataset; more drops than the share `max_dropped` are an InputError, as is any with `error`."""
    results: list[TokenizedExample | Dropped] = []
    for first in range(0, len(examples), _BATCH):
        results += tokenization.encode_batch(examples[first : first + _BATCH])
    kept = [result for result in results if isinstance(result, TokenizedExample)]
    dropped = [result for result in results if isinstance(result, Dropped)]
    overlong = [drop for drop in dropped if drop.reason == "overlong"]
    if overlong and on_overlong == "error":
        raise _refusal("overlong", overlong, len(results), tokenization.max_length, limit=0, name=name)
    if dropped and len(dropped) > max_dropped * len(results):
        reasons = {drop.reason for drop in dropped}
        kind = "prompt_not_prefix" if reasons == {"prompt_not_prefix"} else "too_many_dropped"
        raise _refusal(kind, dropped, len(results), tokenization.max_length, limit=max_dropped, name=name)
    return Tokenized(examples=kept, dropped=dropped, notes=tokenization.notes(examples))


def fitting(
    examples: Sequence[Example],
    tokenization: Tokenization,
    *,
    max_dropped: float,
    name: str,
    on_overlong: Literal["drop", "error"] = "drop",
) -> tuple[list[Example], list[Dropped]]:
    """Return the held-out rows that can be asked, and those that cannot; raises as `tokenize_all`."""
    dropped = tokenize_all(examples, tokenization, on_overlong=on_overlong, max_dropped=max_dropped, name=name).dropped
    # A row number alone names rows of several sources.
    lost = {(one.row, one.digest) for one in dropped}
    return [example for example in examples if (example.row, example.digest) not in lost], list(dropped)


def _refusal(
    kind: str, dropped: Sequence[Dropped], total: int, max_length: int, *, limit: float, name: str
) -> InputError:
    counts = Counter(drop.reason for drop in dropped)
    rows = {reason: [drop.row for drop in dropped if drop.reason == reason][:5] for reason in counts}
    longest = sorted((drop.tokens for drop in dropped if drop.reason == "overlong"), reverse=True)[:5]
    listing = "; ".join(f"{count} {reason} (rows {str(rows[reason])[1:-1]})" for reason, count in counts.most_common())
    tail = f"; the longest have {str(longest)[1:-1]} tokens, the limit is {max_length}" if longest else ""
    return InputError(
        f"{len(dropped)} of {total} rows of {name!r} cannot be used ({len(dropped) / total:.1%}): {listing}{tail}",
        kind=kind,
        given={"dropped": len(dropped), "rows": total, "reasons": dict(counts), "longest": longest},
        allowed=f"at most {limit:.1%} of the rows (data.max_dropped)"
        if limit
        else "no such row (data.on_overlong: error)",
        hint=" ".join(_REMEDIES[reason] for reason in counts),
        path="data.max_length" if longest else "data.template",
    )


def _borders(offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return the offsets as an array [2, T]: where each token begins and ends in the text."""
    flat = np.fromiter(itertools.chain.from_iterable(offsets), dtype=np.int64, count=2 * len(offsets))
    return flat.reshape(-1, 2).T


def _in_spans(starts: NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return which tokens begin inside one of the character spans."""
    inside = np.zeros(len(starts), dtype=np.bool_)
    for first, last in spans:
        inside |= (starts >= first) & (starts < last)
    return inside


def _present(token: int | None) -> list[int]:
    return [] if token is None else [token]
