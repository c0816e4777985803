"""Rows that teach something nobody wants: silence, refusals, turns that say nothing.

Roles out of order never get this far, the readers refuse them; they are looked for again because rows need not come
from a reader.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ftray.audit.finder import TEST, TRAIN, VALIDATION
from ftray.audit.passages import answers
from ftray.audit.report import Check, found
from ftray.audit.tally import Tally, rows
from ftray.data.conversations import Example, Message
from ftray.data.turns import BadTurn, check_order

REFUSALS_LIMIT = 0.005
OPENING = 300
"""Characters of an answer in which a refusal stands that is more than a phrase."""
_CORES = (
    "as an ai", "language model", "an ai ", "can't", "cannot", "can not", "unable to", "not able to", "sorry", "won't",
    "my programming", "ki-sprachmodell", "modèle de langage", "modelo de lenguaje", "modello linguistico",
    "语言模型", "抱歉",
)  # fmt: skip
"""Every refusal has one of these; most answers have none and are done."""
_NOT = (
    r"(?:cannot|can't|can not|won't|will not|don't|do not|am unable|am not able|'m unable|'m not able|'m not capable"
    r"|am not capable|must decline)"
)
_DO = (
    r"(?:to )?(?:assist|help|provide|fulfil|comply|answer|do that|create|generate|write|support|engage|discuss|share|"
    r"give|offer|complete|continue|process|perform|access|participate|respond|be able)"
)
_ANYWHERE = re.compile(
    r"as an (?:ai|artificial intelligence) (?:large )?language model"
    r"|as a (?:large )?language model[^.!?]{0,60}\b(?:not|can't|cannot|don't|unable)\b"
    r"|i(?:'m| am) (?:just |only )?an? (?:ai |large )+language model[^.!?]{0,60}\b(?:not|can't|cannot)\b"
    rf"|as an ai\b[^.!?]{{0,60}}\bi ?{_NOT}"
    r"|als (?:ein )?ki-sprachmodell|en tant que modèle de langage|como modelo de lenguaje|come modello linguistico"
    r"|作为(?:一个|一名)?(?:ai|人工智能|大型)?语言模型"
)
_AT_THE_START = re.compile(
    rf"(?:^|[.!?,]\s+)(?:but |unfortunately,? )?i ?{_NOT} {_DO}"
    rf"|(?:^|[.!?]\s+)(?:i'm|i am) (?:really |very |so |truly |afraid |terribly )*sorry,? but (?:i|as an ai)\b"
    r"[^.!?]{0,40}(?:n't|not|unable|decline)"
    r"|^sorry,? (?:but )?i (?:can't|cannot|am unable|won't)"
    r"|against my (?:programming|guidelines)|^(?:很)?抱歉\uff0c(?:但)?我(?:无法|不能)"
)


class Empty:
    """Looks for rows whose answer, in any turn of the assistant, is blank; a tool call is an answer."""

    def __init__(self) -> None:
        self._tally = Tally()

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        self._tally.pass_by(examples)
        for example in examples:
            if example.is_blank:
                self._tally.add(example)

    def checks(self) -> Sequence[Check]:
        fix = f"{self._tally.say('no answer')}. Fill in or remove them: a model learns to say nothing from them."
        tally = self._tally
        return [found("empty", tally.worst, rows=tally.rows, fix=fix, limit=0.0, over="fail", facts=tally.facts)]


class Refusals:
    """Looks for answers that refuse ("As an AI language model, I cannot ..."), in training, validation and test."""

    def __init__(self) -> None:
        self._tally = Tally()

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        if dataset not in (TRAIN, VALIDATION, TEST):
            return  # A general probe may well ask for what must be refused.
        self._tally.pass_by(examples)
        for example in examples:
            said = answers(example)
            if any(refuses(answer) for answer in said):
                self._tally.add(example, severity=-sum(map(len, said)))

    def checks(self) -> Sequence[Check]:
        fix = (
            f"{self._tally.say('an answer that refuses')}. Remove them unless the model is meant to refuse there: a "
            "few hundred teach it to refuse what it could do. The shortest come first."
        )
        tally = self._tally
        return [found("refusals", tally.worst, rows=tally.rows, fix=fix, limit=REFUSALS_LIMIT, facts=tally.facts)]


class RoleOrder:
    """Looks for conversations whose turns are out of order or whose user says nothing."""

    def __init__(self) -> None:
        self._tally = Tally()

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        self._tally.pass_by(examples)
        for example in examples:
            faults = _order_faults(example.messages)
            if faults:
                self._tally.add(example, faults, severity=float(len(faults)))

    def checks(self) -> Sequence[Check]:
        tally = self._tally
        empty, wrong = tally.kinds["empty_user_turn"], tally.kinds["out_of_order"]
        parts = [
            f"{rows(empty)} with an empty turn of the user: give the question or remove the row, or the model learns "
            "to answer nothing at all. " if empty else "",
            f"{rows(wrong)} with roles out of order: user and assistant take turns, after a system message if there "
            "is one, and the assistant has the last word. " if wrong else "",
        ]  # fmt: skip
        fix = "".join(parts).strip()
        return [found("role_order", tally.worst, rows=tally.rows, fix=fix, limit=0.0, facts=tally.facts)]


def refuses(answer: str) -> bool:
    """Return whether an answer refuses, judged by the usual phrases."""
    folded = answer.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if not any(core in folded for core in _CORES):
        return False
    return bool(_ANYWHERE.search(folded) or _AT_THE_START.search(folded, 0, OPENING))


def _order_faults(messages: Sequence[Message]) -> list[str]:
    if not messages:
        return []
    faults = []
    if any(turn.role == "user" and (not turn.content or turn.content.isspace()) for turn in messages):
        faults.append("empty_user_turn")
    try:
        check_order(messages)
    except BadTurn:
        faults.append("out_of_order")
    return faults
