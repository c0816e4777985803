"""Every error keeps what it says on its way through processes, JSON and exit codes."""

from __future__ import annotations

import json
import pickle

import pytest

from ftray.errors import FAILURE_KINDS, FtrayError, InputError, Interrupted, RunError, is_out_of_memory, nearest

FIELDS = {
    "kind": "bad_value",
    "given": {"rank": 0},
    "allowed": ["1", "4096"],
    "hint": "Raise it.",
    "path": "method.rank",
    "file": "job.yaml",
    "line": 7,
}


@pytest.mark.parametrize(("cls", "code"), [(InputError, 2), (RunError, 1), (Interrupted, 130)])
def test_errors_pickle_with_all_their_fields(cls: type[FtrayError], code: int) -> None:
    error = cls("rank is 0", **FIELDS)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == copy.message == "rank is 0"
    assert {name: getattr(copy, name) for name in FIELDS} == FIELDS
    assert copy.exit_code == code


def test_an_error_record_is_the_contracts_document() -> None:
    record = InputError("rank is 0", **FIELDS).to_record()  # type: ignore[arg-type]
    assert record == {"schema": "ftray/error/1", "exit_code": 2, "message": "rank is 0", **FIELDS}
    assert json.loads(json.dumps(record)) == record


def test_fields_that_are_not_given_are_empty() -> None:
    record = RunError("lost", kind="node").to_record()
    assert record["hint"] == ""
    assert [record[name] for name in ("given", "allowed", "path", "file", "line")] == [None] * 5


def test_failure_kinds_are_those_of_the_contract() -> None:
    assert FAILURE_KINDS == ("oom", "data", "node", "communication", "nonfinite", "nothing_learned", "unknown")


def test_memory_that_ran_out_is_recognised_whoever_says_so() -> None:
    import torch

    with pytest.raises(RuntimeError) as on_the_host:
        torch.empty(2**58)
    assert is_out_of_memory(on_the_host.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.")
    assert is_out_of_memory("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array")
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_nearest_finds_what_was_meant_and_nothing_far_fetched() -> None:
    known = ["learning_rate", "epochs", "batch_size"]
    assert nearest("learnin_rate", known) == "learning_rate"
    assert nearest("epoch", iter(known)) == "epochs"
    assert nearest("zzz", known) is None
