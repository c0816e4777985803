"""Rows that do not fit the model. They are counted by the tokenizer, so this is a function, not a finder.

ftray never cuts a row: one that is too long is left out of training, and of the evaluation. A row that a source's
weight repeats is one row here, as it is for all other checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ftray.audit.report import Check, Pointer, Worst, found, skipped
from ftray.audit.tally import rows as num_rows
from ftray.data.tokenization import Dropped

TRUNCATION_LIMIT = 0.0


def truncation(dropped: Mapping[str, Sequence[Dropped]] | None, rows: Mapping[str, int]) -> Check:
    """Return the check of rows that are too long, of what was dropped and how many different rows there were.

    Both are by dataset. None for `dropped` means that nothing was tokenized.
    """
    if dropped is None:
        why = "Without a model there is no tokenizer to count tokens with: give the job's model to look for long rows."
        return skipped("truncation", why, limit=TRUNCATION_LIMIT)
    worst = Worst()
    long = {name: _overlong(some) for name, some in dropped.items()}
    for name, some in long.items():
        for row in some:
            worst.add(Pointer(dataset=name, row=row.row), row.tokens)
    datasets = {
        name: {"rows": len(some), "share": len(some) / rows[name], "longest_tokens": max(row.tokens for row in some)}
        for name, some in long.items()
        if some
    }
    parts = [f"{num_rows(len(some))} of {rows[name]:,} in {name}" for name, some in long.items() if some]
    longest = max((row.tokens for some in long.values() for row in some), default=0)
    fix = (
        f"{', '.join(parts)} do not fit the longest example and are left out whole (nothing is ever cut): shorten "
        f"them, or raise data.max_length up to the model's own limit. The longest has {longest:,} tokens."
    )
    return found(
        "truncation", worst, rows=sum(rows.values()), fix=fix, limit=TRUNCATION_LIMIT, facts={"datasets": datasets}
    )


def _overlong(dropped: Sequence[Dropped]) -> list[Dropped]:
    """Return the rows that are too long, each once."""
    return list({(row.dataset, row.row, row.digest): row for row in dropped if row.reason == "overlong"}.values())
