"""Personal data and secrets in rows: mail addresses, telephone, card and account numbers, keys.

The text that matched never leaves this file: only kinds, counts and row numbers do. Numbers that carry a checksum are
counted only when it holds (Luhn for cards, ISO 7064 mod 97 for IBANs), telephone numbers only in written-out forms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from ftray.audit.passages import Passages
from ftray.audit.report import Check, found
from ftray.audit.tally import Tally
from ftray.data.conversations import Example

Kind = Literal["email", "phone", "credit_card", "iban", "us_ssn", "ipv4", "secret"]
NOUNS: dict[Kind, str] = {
    "email": "e-mail addresses",
    "phone": "telephone numbers",
    "credit_card": "card numbers",
    "iban": "IBANs",
    "us_ssn": "US social security numbers",
    "ipv4": "IP addresses",
    "secret": "keys or passwords of services",
}
SEVERITY: dict[Kind, float] = {
    "secret": 5.0, "credit_card": 4.0, "us_ssn": 4.0, "iban": 3.0, "email": 2.0, "phone": 2.0, "ipv4": 1.0,
}  # fmt: skip

_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})\b")
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY|\bsk-[A-Za-z0-9_-]{20}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_[A-Za-z0-9_]{22}|\bxox[abprs]-[A-Za-z0-9-]{10}"
    r"|\bAIza[0-9A-Za-z_-]{35}|\bhf_[A-Za-z0-9]{30}|\bglpat-[A-Za-z0-9_-]{20}|\b[rs]k_live_[A-Za-z0-9]{16}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10}"
)
_SECRET_MARKS = ("-----BEGIN", "sk-", "AKIA", "ASIA", "gh", "xox", "AIza", "hf_", "glpat", "k_live_", "eyJ")
_DIGITS = re.compile(r"[0-9][0-9 ().\-/]{5,}[0-9]")
"""Every kind of number has a run like this; most texts have none and are done."""
_IBAN = re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![0-9.,+-])[2-6](?:[ -]?[0-9]){12,18}(?![0-9]|[.,][0-9])")
_CARD_BRANDS = re.compile(
    r"4[0-9]{12}(?:[0-9]{3}){0,2}|5[1-5][0-9]{14}|2(?:2[2-9]|[3-6][0-9]|7[01])[0-9]{13}|3[47][0-9]{13}"
    r"|6(?:011|5[0-9]{2})[0-9]{12}|35[0-9]{14}|3(?:0[0-5]|[68][0-9])[0-9]{11}"
)
_SSN = re.compile(r"(?<![0-9-])(?!000|666|9[0-9]{2}|078-05-1120)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![0-9-])")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![0-9.vV])(?:{_OCTET}\.){{3}}{_OCTET}(?![0-9]|\.[0-9])")
_PHONE = re.compile(
    r"(?<![\w)\]+])(?:"
    r"\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{1,4}(?:[ ./-]?[0-9]{2,4}){2,4}"  # international
    r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[ .-][0-9]{4}"  # North America
    r"|\(?0[1-9][0-9]{1,4}\)?[ /-][0-9]{3,4}(?:[ -]?[0-9]{2,4}){1,2}"  # national, with the trunk's zero
    r")(?![\w]|[.,][0-9])"
)


class PersonalData:
    """Looks for personal data and secrets in every part of a row."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._passages = Passages()

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        self._tally.pass_by(examples)
        for example in examples:
            kinds = personal_kinds(self._passages.whole(example))
            if kinds:
                self._tally.add(example, kinds, severity=sum(SEVERITY[kind] for kind in kinds))

    def checks(self) -> Sequence[Check]:
        tally = self._tally
        parts = [f"{NOUNS[kind]} in {tally.kinds[kind]}" for kind in NOUNS if tally.kinds[kind]]
        fix = (
            f"{tally.say('what looks like personal data or a secret')}: {', '.join(parts)}. Replace it by made-up "
            "values or remove the rows: a model can repeat what it was trained on to anyone, and a key that stood in "
            "a file is a key to change. Examples are given by row number only."
        )
        return [found("personal_data", tally.worst, rows=tally.rows, fix=fix, limit=0.0, facts=tally.facts)]


def personal_kinds(text: str) -> list[Kind]:
    """Return the kinds of personal data in a text, each once."""
    kinds: list[Kind] = []
    if "@" in text and _EMAIL.search(text):
        kinds.append("email")
    if any(mark in text for mark in _SECRET_MARKS) and _SECRET.search(text):
        kinds.append("secret")
    if _DIGITS.search(text):
        kinds += _numbers(text)
    return kinds


def is_luhn(digits: str) -> bool:
    """Return whether the last digit is the Luhn check digit of those before it (ISO/IEC 7812-1)."""
    doubled = [2 * int(digit) for digit in digits[-2::-2]]
    return (sum(map(int, digits[::-2])) + sum(number - 9 * (number > 9) for number in doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Return whether letters and digits without blanks are an IBAN (ISO 13616: mod 97 is 1)."""
    moved = text[4:] + text[:4]
    return 15 <= len(text) <= 34 and int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def _numbers(text: str) -> list[Kind]:
    """Return the kinds of numbers, the unmistakable first: what one kind has taken is no telephone number."""
    kinds: list[Kind] = []
    finders: tuple[tuple[Kind, re.Pattern[str], Callable[[str], bool]], ...] = (
        ("iban", _IBAN, _holds_iban),
        ("credit_card", _CARD, _holds_card),
        ("us_ssn", _SSN, bool),
        ("ipv4", _IPV4, _is_host),
        ("phone", _PHONE, _is_long),
    )
    for kind, pattern, is_right in finders:
        blanked = pattern.sub(partial(_blank, is_right=is_right), text)
        if blanked != text:
            kinds.append(kind)
            text = blanked
    return kinds


def _blank(match: re.Match[str], *, is_right: Callable[[str], bool]) -> str:
    """Return blanks for a match that is right, so that no other kind takes it; any other stays."""
    return " " * len(match.group()) if is_right(match.group()) else match.group()


def _holds_iban(match: str) -> bool:
    """Return whether an IBAN stands at the start; the pattern may have taken a word or number that follows it."""
    packed = match.replace(" ", "")
    return any(is_iban(packed[:length]) for length in range(15, len(packed) + 1))


def _holds_card(match: str) -> bool:
    digits = re.sub(r"[ -]", "", match)
    return len(set(digits)) > 1 and bool(_CARD_BRANDS.fullmatch(digits)) and is_luhn(digits)


def _is_host(match: str) -> bool:
    """Return whether a dotted quad is more than a loopback or mask, or a section number like 1.2.3.4."""
    octets = [int(octet) for octet in match.split(".")]
    return octets[0] not in (0, 127, 255) and max(octets) >= 10


def _is_long(match: str) -> bool:
    num_digits = sum(character.isdigit() for character in match)
    return 9 <= num_digits <= 15
