"""A written job file loads, says what was guessed, and stays valid when its comments are taken away."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.errors import InputError
from ftray.initialise import OPTIONS, schema_field, write_job
from ftray.job import Job, load_job

INTENTS = ("music", "weather", "light")
LONG = "A long answer that says more than a label could, in a whole sentence. "
CHAT = [{"role": "user", "content": "{n}"}, {"role": "assistant", "content": LONG}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(count: int = 60) -> list[dict[str, Any]]:
    return [
        {"id": f"r{n}", "utterance": f"please do thing number {n}", "intent": INTENTS[n % 3], "slots": []}
        for n in range(count)
    ]


def test_columns_are_guessed_and_said(tmp_path: Path) -> None:
    data = write(tmp_path / "My Data.jsonl", labelled())
    test = write(tmp_path / "test.jsonl", labelled(6))
    output = tmp_path / "job.yaml"
    said = write_job(data, model=None, output=output, test=test)
    assert "'Which intent is this? {utterance}'" in said[0]
    assert "id, utterance, intent, slots" in said[0]
    assert "60 training rows; 3 different short answers: a classification" in said[1]
    assert "6 test rows" in said[2]
    job = load_job(output).job
    assert job.name == "my-data"
    assert (job.data.train.prompt, job.data.train.completion) == (  # type: ignore[union-attr]
        "Which intent is this? {utterance}",
        "{intent}",
    )
    assert job.data.test.path == str(test)  # type: ignore[union-attr]
    assert "./My Data.jsonl" in output.read_text()  # the folder can be moved as a whole
    assert (job.evaluate.task.metric, job.evaluate.task.max_new_tokens) == ("exact_match", 16)


@pytest.mark.parametrize(
    ("row", "format", "metric"),
    [
        ({"prompt": "p {n}", "completion": f"{LONG} {{n}}"}, "prompt_completion", "rouge_l"),
        ({"instruction": "i {n}", "input": "", "output": "{n}"}, "alpaca", "exact_match"),
        ({"messages": CHAT}, "messages", "rouge_l"),
        ({"text": "a story {n}"}, "text", "bits_per_byte"),
    ],
)  # fmt: skip
def test_known_formats_are_recognised(tmp_path: Path, row: dict[str, Any], format: str, metric: str) -> None:
    rows = [json.loads(json.dumps(row).replace("{n}", str(n))) for n in range(20)]
    output = tmp_path / "job.yaml"
    said = write_job(write(tmp_path / "data.jsonl", rows), model="org/model", output=output)
    assert said[0].endswith(f"looks like the format {format}.")
    assert "no test rows" in said[2]
    job = load_job(output).job
    assert (job.model, job.evaluate.task.metric, job.data.train.prompt) == ("org/model", metric, None)  # type: ignore[union-attr]


def test_every_comment_taken_away_is_still_the_same_job(tmp_path: Path) -> None:
    output = tmp_path / "job.yaml"
    write_job(write(tmp_path / "data.jsonl", labelled()), model=None, output=output)
    text = output.read_text()
    options = re.compile(r"^( *)# ([a-z_]+: \S.*)$", re.MULTILINE)
    bare = "\n".join(line for line in options.sub(r"\1\2", text).splitlines() if not line.lstrip().startswith("#"))
    written, shown = yaml.safe_load(bare), load_job(output).job
    assert set(written["train"]) > {"learning_rate", "epochs", "batch_size", "warmup"}
    del written["data"]["test"]  # the one option that is no default
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(written))
    assert load_job(tmp_path / "bare.yaml").job.model_dump() == shown.model_dump()


def test_comments_are_the_schemas_own_words(tmp_path: Path) -> None:
    output = tmp_path / "job.yaml"
    write_job(write(tmp_path / "data.jsonl", labelled()), model=None, output=output)
    text = output.read_text()
    for path in OPTIONS:
        description = " ".join(schema_field(path).description.split())
        assert f"# {description}" in text
        assert re.search(rf"^ *# {path.rsplit('.', 1)[-1]}: ", text, re.MULTILINE)


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    output = tmp_path / "job.yaml"
    output.write_text("mine")
    with pytest.raises(InputError) as caught:
        write_job(write(tmp_path / "data.jsonl", labelled()), model=None, output=output)
    assert caught.value.kind == "exists"
    assert output.read_text() == "mine"


def test_rows_nothing_can_be_made_of_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    output = tmp_path / "job.yaml"
    for rows, kind in (
        ([{"only": "one column"}], "unknown_format"),
        ([{"a": [1], "b": {"c": 2}}], "unknown_format"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], "preference_data"),
        ([], "empty_dataset"),
    ):
        with pytest.raises(InputError) as caught:
            write_job(write(tmp_path / "data.jsonl", rows), model=None, output=output)
        assert caught.value.kind == kind
    with pytest.raises(InputError) as caught:
        write_job(tmp_path / "absent.jsonl", model=None, output=output)
    assert caught.value.kind == "missing_file"
    assert not output.exists()


def test_a_test_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", labelled())
    test = write(tmp_path / "test.jsonl", [{"sentence": "x", "label": "y"}])
    with pytest.raises(InputError) as caught:
        write_job(data, model=None, output=tmp_path / "job.yaml", test=test)
    assert caught.value.kind == "missing_column"


def test_an_output_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        write_job(write(tmp_path / "d.jsonl", labelled()), model=None, output=tmp_path / "absent" / "job.yaml")
    assert caught.value.kind == "storage"


@settings(deadline=None, max_examples=60)
@given(
    name=st.text(min_size=1, max_size=12),
    asks=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda name: name.strip()),
)
def test_any_column_and_file_name_gives_a_job_that_loads_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, name: str, asks: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    stem = re.sub(r"[/\x00\ud800-\udfff$]", "", name)[:12].strip(". ") or "x"
    rows = [{asks: f"a question that is longer {n}", "label_": INTENTS[n % 3]} for n in range(12)]
    data = write(folder / f"{stem}.jsonl", rows)
    try:
        write_job(data, model=None, output=folder / "job.yaml")
    except InputError:
        assert not (folder / "job.yaml").exists()
        return
    job = load_job(folder / "job.yaml").job
    assert isinstance(job, Job)
    assert Path(job.data.train.path) == data.resolve()  # type: ignore[union-attr]


def test_real_files_are_recognised(shared: Path, tmp_path: Path) -> None:
    said = write_job(shared / "data/snips/heldout.jsonl", model=None, output=tmp_path / "snips.yaml")
    assert "'Which intent is this? {text}' and expecting '{intent}'" in said[0]
    write_job(shared / "data/formats/alpaca_en_demo.json", model=None, output=tmp_path / "alpaca.yaml")
    assert load_job(tmp_path / "alpaca.yaml").job.evaluate.task.metric == "rouge_l"
