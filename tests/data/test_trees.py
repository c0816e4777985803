from __future__ import annotations

import pytest

from ftray.data.rows import Row
from ftray.data.trees import read_threads
from ftray.errors import InputError


def tree(*messages):
    keys = ("message_id", "parent_id", "role", "text", "rank")
    return [Row(index=i, line=i + 1, columns=dict(zip(keys, m, strict=True))) for i, m in enumerate(messages)]


def test_the_best_ranked_path_of_every_root():
    rows = tree(
        ("r1", None, "prompter", "Hi", None),
        ("a", "r1", "assistant", "worse", 1),
        ("b", "r1", "assistant", "better", 0),
        ("c", "b", "prompter", "And?", None),
        ("d", "c", "assistant", "Done", None),
        ("e", "a", "prompter", "not on the path", 0),
        ("r2", None, "prompter", "Yo", None),
        ("f", "r2", "assistant", "Hey", None),
        ("g", "f", "prompter", "unanswered", None),
        ("r3", None, "prompter", "nobody answers", None),
    )
    threads = list(read_threads(rows, file="f"))
    assert [[turn.content for turn in thread.messages] for thread in threads] == [
        ["Hi", "better", "And?", "Done"],
        ["Yo", "Hey"],
    ]
    assert [thread.root.index for thread in threads] == [0, 6]


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (("x", "gone", "assistant", "a", 0), "not in the file"),
        (("r", "r", "assistant", "a", 0), "repeats the message_id"),
        (("x", "r", "prompter", "a", 0), "unanswered"),
        (("x", "r", "assistant", None, 0), "must be text"),
        (("x", "r", "assistant", "a", "first"), "not a number"),
    ],
)
def test_broken_trees_are_refused(second, what):
    rows = tree(("r", None, "prompter", "Hi", None), second)
    if what == "unanswered":
        assert list(read_threads(rows, file="f")) == []
        return
    with pytest.raises(InputError, match=what):
        list(read_threads(rows, file="f"))
