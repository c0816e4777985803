from __future__ import annotations

from ftray.audit.truncation import truncation
from ftray.data.tokenization import Dropped


def dropped(dataset, row, tokens, reason="overlong"):
    return Dropped(dataset=dataset, row=row, digest="", reason=reason, tokens=tokens)


def test_long_rows_are_counted_by_dataset_the_longest_first():
    lost = {
        "train": [dropped("train", 3, 600), dropped("train", 9, 9000), dropped("train", 4, 5, "no_labels")],
        "test": [dropped("test", 1, 700)],
        "validation": [],
    }
    check = truncation(lost, {"train": 100, "test": 10, "validation": 5})
    assert (check.name, check.status, check.count, check.rows) == ("truncation", "warn", 3, 115)
    assert [(p.dataset, p.row) for p in check.examples] == [("train", 9), ("test", 1), ("train", 3)]
    assert check.facts["datasets"] == {
        "train": {"rows": 2, "share": 0.02, "longest_tokens": 9000},
        "test": {"rows": 1, "share": 0.1, "longest_tokens": 700},
    }
    assert "2 rows of 100 in train, 1 row of 10 in test" in check.fix
    assert "9,000 tokens" in check.fix


def test_rows_that_fit_pass_and_without_a_tokenizer_it_is_skipped():
    assert truncation({"train": []}, {"train": 100}).status == "pass"
    check = truncation(None, {"train": 100})
    assert (check.status, check.count) == ("skipped", 0)
    assert "tokenizer" in check.fix


def test_a_row_that_a_weight_repeats_is_one_row():
    lost = [dropped("train", 3, 600)] * 9 + [dropped("train", 4, 700)]
    check = truncation({"train": lost}, {"train": 10})
    assert (check.count, check.rows, check.facts["datasets"]["train"]["share"]) == (2, 10, 0.2)
    # Another source's row of the same number is another row.
    other = Dropped(dataset="train", row=3, digest="other", reason="overlong", tokens=800)
    assert truncation({"train": [*lost, other]}, {"train": 20}).count == 3
