"""Characters that do not belong into a text: broken encodings, and the control tokens of chat templates.

Mojibake is UTF-8 that was read as Windows-1252 or Latin-1: a lead byte's letter (Ã, Â, â€) and the letters of the
bytes that went with it. One such letter alone is an ordinary letter ("SÃO").
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ftray.audit.passages import Passages, answers
from ftray.audit.report import Check, Status, found
from ftray.audit.tally import Tally
from ftray.data.conversations import Example

CHARACTERS_LIMIT = 0.01
"""Share of rows above which broken characters, or control tokens, fail instead of warn."""
MARKERS = ("### Instruction:", "### Input:", "### Response:")
"""Words of the Alpaca template: no tokens of their own, so that they do harm in an answer more than in a prompt."""
TOKENS = (
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>",
)  # fmt: skip
"""Control tokens of the common chat templates, beside all of the form <|name|>."""
_SHAPE = r"<\|[a-z][a-z0-9_]{1,30}\|>"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# What the bytes 80-BF become in Latin-1 or Windows-1252. The quotes and dashes among them may follow a capital letter
# in good text (AMANHÃ”), and then no letter comes next.
_TAIL = (
    "\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2020\u2021\u02c6\u2030\u0160"
    "\u2039\u0152\u017d\u02dc\u2122\u0161\u203a\u0153\u017e\u0178\u2022"
)
_DOUBTFUL = "\u00bb\u201c\u201d\u2018\u2019\u2026\u2013\u2014"
_STRANGE = re.compile(
    rf"(?P<mojibake>[ÂÃ](?:(?![\u00bb])[{_TAIL}]|[{_DOUBTFUL}](?=[a-zà-ÿ]))"
    r"|â€[\u0080-\u00bf\u2122\u0153\u201c\u201d\u02dc]|ðŸ|ï¿½"
    rf"|(?:[ÐÑ][{_TAIL}{_DOUBTFUL}]){{2}}|(?:[à-ï][{_TAIL}{_DOUBTFUL}]{{2}}){{2}})"
    "|(?P<replacement>\ufffd)"
    "|(?P<control>[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f])"
    "|(?P<surrogate>[\ud800-\udfff])"
    "|(?P<private_use>[\ue000-\uf8ff\U000f0000-\U0010ffff])"
)


class Encoding:
    """Looks for mojibake, replacement and control characters, lone surrogates and characters of private use."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._passages = Passages()

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        self._tally.pass_by(examples)
        for example in examples:
            text = self._passages.whole(example)
            if text.isascii():
                if _CONTROL.search(text):
                    self._tally.add(example, ["control"], severity=len(_CONTROL.findall(text)))
            else:
                kinds = [match.lastgroup or "" for match in _STRANGE.finditer(text)]
                if kinds:
                    self._tally.add(example, sorted(set(kinds)), severity=len(kinds))

    def checks(self) -> Sequence[Check]:
        tally = self._tally
        turned = (
            " (`text.encode('cp1252').decode('utf-8')` turns most mojibake back)" if tally.kinds["mojibake"] else ""
        )
        fix = (
            f"{tally.say('broken characters')}: {_listed(tally)}. Read the file anew in the encoding it was written in"
            f"{turned}, or correct or remove the rows: the model learns to write the same."
        )
        return [
            found("encoding", tally.worst, rows=tally.rows, fix=fix, limit=CHARACTERS_LIMIT, over="fail", under="warn",
                  facts=tally.facts)
        ]  # fmt: skip


class TemplateTokens:
    """Looks for control tokens of chat templates inside content; `extra` are the tokenizer's own.

    The Alpaca template's words in a prompt only warn: such a prompt is plain text, if doubled by the job's template.
    """

    def __init__(self, extra: Collection[str] = ()) -> None:
        tokens = sorted({*TOKENS, *(token for token in extra if len(token.strip()) > 2)}, key=len, reverse=True)
        self._tokens = re.compile("|".join([_SHAPE, *map(re.escape, tokens)]))
        self._firsts = {token[0] for token in tokens} | {"<"}
        self._tally = Tally()
        self._grave = 0
        self._passages = Passages()

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        self._tally.pass_by(examples)
        for example in examples:
            text = self._passages.whole(example)
            hits = self._tokens.findall(text) if any(first in text for first in self._firsts) else []
            markers = [marker for marker in MARKERS if marker in text] if "### " in text else []
            if hits or markers:
                is_grave = bool(hits) or any(marker in answer for marker in markers for answer in answers(example))
                self._grave += is_grave
                self._tally.add(example, sorted({*hits, *markers}), severity=len(hits) + (1e6 if is_grave else 0))

    def checks(self) -> Sequence[Check]:
        tally = self._tally
        over: Status = "fail" if self._grave > CHARACTERS_LIMIT * tally.rows else "warn"
        double = "" if self._grave else " They stand in prompts only, so the job's template is put around another one."
        fix = (
            f"{tally.say('control words of a chat template inside their content')}: {_listed(tally)}. Remove them and "
            "let `data.template` write them: in the content they end turns early, or teach the model to write them."
            + double
        )
        return [
            found("template_tokens", tally.worst, rows=tally.rows, fix=fix, limit=CHARACTERS_LIMIT, over=over,
                  under="warn", facts={**tally.facts, "in_answers_or_as_tokens": self._grave} if tally.count else {})
        ]  # fmt: skip


def _listed(tally: Tally) -> str:
    return ", ".join(f"{kind.replace('_', ' ') if kind.isidentifier() else kind} in {number}"
                     for kind, number in tally.kinds.most_common(6))  # fmt: skip
