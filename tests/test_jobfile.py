"""Reading a job file: what it means, and one clear error with a line number for everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.errors import InputError
from ftray.job import Job, load_job
from ftray.jobfile import apply_sets, expand_path, read_yaml, resolve_path, validate

JOB = """\
name: tiny
model: base
data:
  train:
    path: train.jsonl
train:
  learning_rate: 1e-4
  epochs: 2
"""


def refused(folder: Path, text: str, *sets: str) -> InputError:
    """Return the error that loading this job raises."""
    (folder / "job.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_job(folder / "job.yaml", sets=sets)
    return caught.value


def read(folder: Path, text: str) -> dict[str, Any]:
    (folder / "job.yaml").write_text(text)
    return read_yaml(folder / "job.yaml")[0]


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2e3", -2000.0),
        ("1.5e-4", 1.5e-4),
        ("3.", 3.0),
        (".5", 0.5),
        ("1_000.5", 1000.5),
    ],
)
def test_numbers_are_written_as_people_write_them(tmp_path: Path, text: str, value: float) -> None:
    assert read(tmp_path, f"x: {text}") == {"x": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [("16", 16), ("e5", "e5"), ("1e", "1e"), ("1.2.3", "1.2.3"), ("null", None), ("'1e-4'", "1e-4"), ("true", True)],
)
def test_what_is_no_float_stays_what_it_is(tmp_path: Path, text: str, value: object) -> None:
    content = read(tmp_path, f"x: {text}")
    assert content == {"x": value}
    assert type(content["x"]) is type(value)


def test_an_alias_inside_itself_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, "name: x\ndata: &data\n  train: *data\n")
    assert error.kind == "not_yaml"
    assert "alias" in error.message


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB + "evaluate:\n  general:\n    - name: a\n      path: b\n")
    _, lines = read_yaml(tmp_path / "job.yaml")
    assert lines["name"] == 1
    assert lines["data.train.path"] == 5
    assert lines["train.learning_rate"] == 7
    assert lines["evaluate.general.0"] == 11
    assert lines["evaluate.general.0.path"] == 12


def test_a_job_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_job(tmp_path / "nowhere.yaml")
    assert caught.value.kind == "missing_file"
    assert caught.value.file == str(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("text", "line"), [("a: [1\nb: 2", 2), ("a: 'x\n", 2), ("- 1\n- 2", 1), ("", 1), ("hello", 1)])
def test_what_is_not_a_yaml_mapping_points_at_the_line(tmp_path: Path, text: str, line: int) -> None:
    error = refused(tmp_path, text)
    assert (error.kind, error.line) == ("not_yaml", line)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        load_job(tmp_path / "job.yaml")


# Keys and values


@pytest.mark.parametrize(
    ("text", "path", "line", "meant"),
    [
        (JOB.replace("learning_rate", "learnin_rate"), "train.learnin_rate", 7, "learning_rate"),
        (JOB + "evaluat: {}\n", "evaluat", 9, "evaluate"),
        (JOB.replace("path:", "pth:"), "data.train.pth", 5, "path"),
        (JOB + "compute:\n  deepspeed: {stge: 2}\n", "compute.deepspeed.stge", 10, "stage"),
        (JOB + "evaluate:\n  general:\n    - {name: a, pth: b}\n", "evaluate.general.0.pth", 11, "path"),
        (JOB + "train_: {}\n", "train_", 9, "train"),
        (JOB + "Train: {}\n", "Train", 9, "train"),
        (JOB.replace("epochs: 2", "batch-size: 8"), "train.batch-size", 8, "batch_size"),
        (JOB.replace("epochs: 2", "batchSize: 8"), "train.batchSize", 8, "batch_size"),
    ],
)
def test_an_unknown_key_names_its_line_and_the_nearest_known_one(
    tmp_path: Path, text: str, path: str, line: int, meant: str
) -> None:
    error = refused(tmp_path, text)
    assert (error.kind, error.path, error.line, error.file) == ("unknown_key", path, line, str(tmp_path / "job.yaml"))
    assert f"`{meant}`" in error.hint
    assert meant in error.allowed


def test_a_key_that_is_no_word_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path, JOB + "1: x\n").message == "the key `1` is not known at the top level"


def test_a_key_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, JOB + "train:\n  epochs: 3\n")
    assert (error.kind, error.line) == ("not_yaml", 9)
    assert "`train` stands there twice, first in line 6" in error.message


def test_merged_sections_may_be_overridden(tmp_path: Path) -> None:
    content = read(tmp_path, "a: &a {path: x, limit: 3}\nb: {<<: *a, path: y}\n")
    assert content["b"] == {"path": "y", "limit": 3}


def test_a_date_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, JOB + "seed: 2024-13-45\n").kind == "not_yaml"


def test_a_key_of_a_later_version_is_told_from_a_typing_error(tmp_path: Path) -> None:
    error = refused(tmp_path, JOB.replace("epochs: 2", "lora_plus_ratio: 16.0"))
    assert error.kind == "unknown_key"
    assert "does not have yet" in error.hint


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        (JOB.replace("epochs: 2", "epochs: many"), "train.epochs", 8),
        (JOB.replace("epochs: 2", "epochs: 0"), "train.epochs", 8),
        (JOB.replace("1e-4", "'1e-4'"), "train.learning_rate", 7),
        (JOB.replace("tiny", "Not A Slug"), "name", 1),
        (JOB.replace("epochs: 2", "epochs: .nan"), "train.epochs", 8),
        (JOB.replace("epochs: 2", "schedule: cosin"), "train.schedule", 8),
        (JOB.replace("epochs: 2", "warmup: 1.5"), "train.warmup", 8),
        (JOB.replace("epochs: 2", "micro_batch_size: some"), "train.micro_batch_size", 8),
        (JOB + "method: {rank: 0}\n", "method.rank", 9),
        (JOB + "method: {rank: 8.5}\n", "method.rank", 9),
        (JOB + "method: {kind: qlora}\n", "method.kind", 9),
        (JOB + "compute: {deepspeed: {stage: 4}}\n", "compute.deepspeed.stage", 9),
        (JOB + "compute: {workers: -1}\n", "compute.workers", 9),
        (JOB + "train_on: x\n", "train_on", 9),
        (JOB + "seed: yes\n", "seed", 9),
        (JOB + "evaluate: 3\n", "evaluate", 9),
        (JOB + "tracking: [tensorbored]\n", "tracking.0", 9),
        (JOB + "audit:\n  accept:\n    - {check: overlap_exact, reason: no}\n", "audit.accept.0.reason", 11),
    ],
)
def test_a_wrong_value_is_one_error_at_its_line(tmp_path: Path, text: str, path: str, line: int) -> None:
    error = refused(tmp_path, text)
    assert (error.path, error.line) == (path, line)
    assert error.kind in {"bad_value", "unknown_key"}
    assert error.hint
    assert error.allowed


def test_a_closed_choice_lists_what_is_allowed(tmp_path: Path) -> None:
    error = refused(tmp_path, JOB.replace("epochs: 2", "schedule: cosin"))
    assert "'cosin'" in error.message
    assert all(choice in str(error.allowed) for choice in ("cosine", "linear", "constant", "wsd"))


def test_a_value_of_a_union_says_what_each_branch_takes(tmp_path: Path) -> None:
    error = refused(tmp_path, JOB.replace("epochs: 2", "evaluate_every: often"))
    assert "auto" in str(error.allowed)
    assert "integer" in str(error.allowed)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (JOB.replace("name: tiny\n", ""), "name"),
        (JOB.replace("    path: train.jsonl", "    limit: 3"), "data.train.path"),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, text: str, path: str) -> None:
    error = refused(tmp_path, text)
    assert (error.kind, error.path) == ("missing_key", path)


def test_yes_is_not_a_number_and_a_whole_float_is_not_an_integer() -> None:
    job = {"name": "tiny", "model": "m", "data": {"train": {"path": "x"}}}
    for section in ({"seed": True}, {"method": {"rank": 8.5}}, {"train": {"max_steps": "10"}}):
        with pytest.raises(InputError):
            validate(Job, {**job, **section}, file=None, lines={})


# --set


def test_settings_are_put_at_their_paths_as_yaml() -> None:
    content: dict[str, Any] = {"train": {"epochs": 2}, "general": [{"path": "a"}, {"path": "b"}]}
    apply_sets(
        content, ["train.learning_rate=2e-4", "method.rank=8", "general.1.path=c=d", "tracking=[]", "preset=null", "x="]
    )
    assert content == {
        "train": {"epochs": 2, "learning_rate": 2e-4},
        "method": {"rank": 8},
        "general": [{"path": "a"}, {"path": "c=d"}],
        "tracking": [],
        "preset": None,
        "x": None,
    }


def test_a_whole_list_entry_can_be_set() -> None:
    content: dict[str, Any] = {"workers": [1, 2]}
    apply_sets(content, ["workers.0=4"])
    assert content == {"workers": [4, 2]}


@pytest.mark.parametrize(
    "setting", ["epochs", "=3", "train.=3", ".epochs=3", "name.deep=1", "list.7=1", "list.x=1", "list.7.path=1", ""]
)
def test_a_setting_that_cannot_be_placed_is_refused(setting: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_sets({"name": "tiny", "list": [{"path": "a"}]}, [setting])
    assert caught.value.kind == "bad_set"
    assert caught.value.given == setting


@given(st.lists(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), min_size=1, max_size=4), st.integers())
def test_a_setting_stands_where_its_path_leads(keys: list[str], value: int) -> None:
    content: dict[str, Any] = {}
    apply_sets(content, [f"{'.'.join(keys)}={value}"])
    place: Any = content
    for key in keys:
        place = place[key]
    assert place == value


def test_settings_are_checked_like_the_file(tmp_path: Path) -> None:
    assert refused(tmp_path, JOB, "method.rnk=8").path == "method.rnk"
    assert refused(tmp_path, JOB, "method.rank=0").given == 0


@pytest.mark.parametrize("setting", ["train.epochs=[1", "name='x"])
def test_a_setting_whose_value_is_no_yaml_is_refused(tmp_path: Path, setting: str) -> None:
    error = refused(tmp_path, JOB, setting)
    assert error.kind == "bad_set"
    assert error.given == setting


# Variables and paths


def test_variables_expand_with_and_without_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAY_TEST_PLACE", "/data")
    monkeypatch.delenv("FTRAY_TEST_NONE", raising=False)

    def expand(text: str) -> str:
        return expand_path(text, base=Path(), path="model", file=None, line=None)

    assert expand("${FTRAY_TEST_PLACE}/a") == "/data/a"
    assert expand("${FTRAY_TEST_NONE:-/tmp/x}/${FTRAY_TEST_PLACE:-no}") == "/tmp/x//data"
    assert expand("${FTRAY_TEST_NONE:-}a") == "a"
    assert expand("$FTRAY_TEST_PLACE {text}") == "$FTRAY_TEST_PLACE {text}"


def test_a_relative_variable_is_relative_to_the_job_file_or_else_to_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shell").mkdir()
    (tmp_path / "jobs").mkdir()
    (tmp_path / "shell" / "data").mkdir()
    monkeypatch.chdir(tmp_path / "shell")
    monkeypatch.setenv("FTRAY_TEST_PLACE", "./data")

    def expand() -> str:
        return expand_path("${FTRAY_TEST_PLACE}/a", base=tmp_path / "jobs", path="model", file=None, line=None)

    assert expand() == str(tmp_path / "shell" / "data" / "a")
    (tmp_path / "jobs" / "data").mkdir()
    assert expand() == "./data/a"
    # A default stands in the job file, and means its folder.
    monkeypatch.delenv("FTRAY_TEST_PLACE")
    (tmp_path / "jobs" / "data").rmdir()
    text = "${FTRAY_TEST_PLACE:-./data}/a"
    assert expand_path(text, base=tmp_path / "jobs", path="model", file=None, line=None) == "./data/a"


def test_a_variable_that_is_not_set_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTRAY_TEST_NONE", raising=False)
    error = refused(tmp_path, JOB.replace("path: train.jsonl", "path: ${FTRAY_TEST_NONE}/train.jsonl"))
    assert (error.kind, error.path, error.line) == ("unset_variable", "data.train.path", 5)
    assert "FTRAY_TEST_NONE" in error.message
    assert "export FTRAY_TEST_NONE" in error.hint


def test_variables_expand_in_paths_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTRAY_TEST_NONE", raising=False)
    (tmp_path / "job.yaml").write_text(JOB.replace("path: train.jsonl", "path: t\n    prompt: '${FTRAY_TEST_NONE}'"))
    source = load_job(tmp_path / "job.yaml").job.data.train
    assert not isinstance(source, list)
    assert source.prompt == "${FTRAY_TEST_NONE}"


def test_only_what_is_a_local_path_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert resolve_path("here", tmp_path) == str(tmp_path / "here")
    assert resolve_path("./there", tmp_path) == str(tmp_path / "there")
    assert resolve_path("/abs/../x", tmp_path) == "/x"
    assert resolve_path("Qwen/Qwen2.5-0.5B", tmp_path) == "Qwen/Qwen2.5-0.5B"
    assert resolve_path("s3://bucket/x", tmp_path) == "s3://bucket/x"
