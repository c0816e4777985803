"""Where in a rendered conversation the assistant speaks, as character spans that include the end-of-turn token.

With {% generation %} markers the template says so. Without, a turn is what stands between the prompt before it and the
conversation up to it, provided the template renders a beginning the same whatever follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ftray.data.conversations import Example
from ftray.data.templates import ChatTemplate, render, special_tokens
from ftray.errors import InputError

LossOn = Literal["all_turns", "last_turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """An example as text: the whole, its prompt (up to the final answer), and the spans that are learned."""

    whole: str
    prompt: str
    spans: tuple[tuple[int, int], ...]


class Scribe:
    """Writes examples as scripts, with one template."""

    def __init__(self, tokenizer: Any, template: ChatTemplate, *, loss_on: LossOn) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.loss_on = loss_on
        self._control = tuple(filter(None, special_tokens(tokenizer).values()))

    def script(self, example: Example) -> Script:
        """Render an example; a template without a usable mask is an InputError."""
        marked = self.template.has_generation_markers
        rendering = render(self.template, self.tokenizer, example, mark=marked)
        prompt = self.prompt(example)
        if marked:
            spans = self._marked_spans(example, rendering.text, rendering.spans)
        else:
            spans = self._spans_by_prefix(example, rendering.text)
        if self.loss_on == "last_turn":
            spans = [span for span in spans if span[1] > len(prompt)]
        return Script(whole=rendering.text, prompt=prompt, spans=tuple(spans))

    def prompt(self, example: Example) -> str:
        """Render everything before the final answer, with the generation prompt."""
        last = len(example.messages) - 1
        return render(self.template, self.tokenizer, example, turns=last, add_generation_prompt=True).text

    def _marked_spans(self, example: Example, whole: str, marked: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
        if not marked:
            raise InputError(
                f"the template {self.template.name!r} marks nothing of {example.dataset} row {example.row} as the "
                "assistant's, so there would be nothing to learn",
                kind="no_assistant_mask",
                given=self.template.name,
                path="data.template",
                hint="Put {% generation %}…{% endgeneration %} around what the assistant says, or use `chatml`.",
            )
        spans = []
        for first, last in marked:
            end = self._without_blanks(whole, first, last)
            if end == last and not whole[first:last].endswith(self._control):
                # Markers closed before the end-of-turn token: the model has to learn to say that, too.
                end += max((len(token) for token in self._control if whole.startswith(token, last)), default=0)
            if end > first:
                spans.append((first, end))
        return spans

    def _spans_by_prefix(self, example: Example, whole: str) -> list[tuple[int, int]]:
        turns = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
        spans = []
        for turn in turns if self.loss_on == "all_turns" else turns[-1:]:
            before = render(self.template, self.tokenizer, example, turns=turn, add_generation_prompt=True).text
            upto = render(self.template, self.tokenizer, example, turns=turn + 1).text
            if not (whole.startswith(upto) and upto.startswith(before)):
                raise InputError(
                    f"the template {self.template.name!r} renders turn {turn} of {example.dataset} row {example.row} "
                    "differently when it stands alone or other turns follow, so where the assistant speaks is unknown",
                    kind="template_not_prefix",
                    given=self.template.name,
                    path="data.template",
                    hint="Use a copy of the template with {% generation %} markers, `chatml`, or `loss_on: last_turn`.",
                )
            spans.append((len(before), self._without_blanks(whole, len(before), len(upto))))
        return spans

    def _without_blanks(self, whole: str, first: int, last: int) -> int:
        """Return where a turn ends: blanks after an end-of-turn token are the template's, not the assistant's."""
        said = whole[first:last].rstrip()
        return first + len(said) if said.endswith(self._control) else last
