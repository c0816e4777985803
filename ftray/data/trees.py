"""OpenAssistant message trees, stored flat: each row one message with its parent.

A tree gives one conversation: from the root, always the best-ranked reply (rank 0 first; unranked last, then file
order), down to the last answer. Deleted messages and roots that nobody answered give none.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ftray.data.columns import missing_column
from ftray.data.conversations import Message
from ftray.data.rows import Row, bad_row
from ftray.data.turns import BadTurn, check_order, make_message

_NEEDED = ("message_id", "parent_id", "role", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """One conversation of a tree and the row of its root."""

    root: Row
    messages: tuple[Message, ...]


def read_threads(rows: Sequence[Row], *, file: str) -> Iterator[Thread]:
    """Yield the best conversation of every tree, in the order of the roots."""
    for row in rows:
        for name in _NEEDED:
            if name not in row.columns:
                raise missing_column(name, row.columns, file=file, line=row.line, where="the format 'oasst'")
    _check_links(rows, file=file)
    replies: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.columns.get("deleted"):
            replies[row.columns["parent_id"] or None].append(row)
    for root in replies[None]:
        path = _best_path(root, replies)
        if len(path) < 2:
            continue
        try:
            turns = [make_message(row.columns["role"], row.columns["text"]) for row in path]
            yield Thread(root=root, messages=check_order(turns))
        except BadTurn as error:
            raise bad_row(f"starts a tree that {error}", file=file, line=root.line, row=root.index) from error


def _check_links(rows: Sequence[Row], *, file: str) -> None:
    known: set[object] = set()
    for row in rows:
        if row.columns["message_id"] in known:
            raise bad_row(
                f"repeats the message_id {row.columns['message_id']!r}", file=file, line=row.line, row=row.index
            )
        known.add(row.columns["message_id"])
    for row in rows:
        parent = row.columns["parent_id"] or None
        if parent is not None and parent not in known:
            raise bad_row(
                f"answers the message {parent!r}, which is not in the file", file=file, line=row.line, row=row.index
            )
        rank = row.columns.get("rank")
        if rank not in (None, "") and not isinstance(rank, int | float):
            raise bad_row(f"has the rank {rank!r}, which is not a number", file=file, line=row.line, row=row.index)


def _best_path(root: Row, replies: dict[object, list[Row]]) -> list[Row]:
    path = [root]
    # Every message has one id and one parent, and a root has none, so the path cannot come back to itself.
    while answers := replies.get(path[-1].columns["message_id"]):
        path.append(min(answers, key=_rank))
    return path if path[-1].columns["role"] == "assistant" else path[:-1]


def _rank(row: Row) -> tuple[float, int]:
    rank = row.columns.get("rank")
    return (math.inf if rank is None or rank == "" or math.isnan(rank) else rank, row.index)
