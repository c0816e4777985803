from __future__ import annotations

from ftray.audit.tally import NUM_KINDS, SHOWN_KINDS, Tally, rows


def test_rows_are_counted_once_and_under_each_kind(make_example):
    tally = Tally()
    tally.pass_by([make_example("q", "a")] * 10)
    tally.add(make_example("q", "a", row=1), ["x", "y"], severity=1)
    tally.add(make_example("q", "a", row=2, dataset="test"), ["x"], severity=2)
    assert (tally.count, tally.rows) == (2, 10)
    assert tally.facts == {"datasets": {"train": 1, "test": 1}, "kinds": {"x": 2, "y": 1}}
    assert [pointer.row for pointer in tally.worst.pointers] == [2, 1]
    assert tally.say("a fault") == "2 rows have a fault (1 in train, 1 in test)"


def test_kinds_without_end_stay_few(make_example):
    tally = Tally()
    for number in range(3 * NUM_KINDS):
        tally.add(make_example("q", "a"), [f"kind {number}"])
    assert len(tally.kinds) <= NUM_KINDS + 1
    assert tally.kinds["others"] == 2 * NUM_KINDS
    assert len(tally.facts["kinds"]) == SHOWN_KINDS


def test_one_row_is_one_row():
    assert (rows(1), rows(2)) == ("1 row", "2 rows")
