from __future__ import annotations

import json

import pytest


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = [{"text": f"say {row} words {row * 7919}", "label": "ab"[row % 2]} for row in range(300)]
    test = [{"text": f"held out {row} and {row * 31}", "label": "a"} for row in range(100)]
    test[9]["text"] = train[30]["text"].upper()
    for name, content in (("train", train), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return tmp_path


TEMPLATES = ("--prompt", "Which? {text}", "--completion", "{label}")


def test_it_says_what_it_found_and_succeeds_without_a_gate(rows, ftray):
    done = ftray("audit", "train.jsonl", "--against", "test.jsonl", *TEMPLATES)
    assert done.exit_code == 0
    assert done.stdout.startswith("FAIL")
    assert "overlap_normalised" in done.stdout
    assert "test row 9 ~ train row 30" in " ".join(done.stdout.split())


def test_json_is_the_report_and_the_gate_an_exit_code(rows, ftray):
    done = ftray("audit", "train.jsonl", "--against", "test.jsonl", *TEMPLATES, "--json", "--gate")
    record = json.loads(done.stdout)
    assert (done.exit_code, record["schema"], record["status"]) == (3, "ftray/audit/1", "fail")
    assert {one["name"]: one["rows"] for one in record["datasets"]} == {"test": 100, "train": 300}


def test_clean_rows_pass_the_gate(rows, ftray):
    first = ftray("audit", "train.jsonl", "--against", "test.jsonl", *TEMPLATES, "--write-clean", "clean.jsonl")
    assert "299 rows written to clean.jsonl (1 left out: stands in an evaluation set)" in " ".join(first.stdout.split())
    done = ftray("audit", "clean.jsonl", "--against", "test.jsonl", *TEMPLATES, "--gate", "--json")
    overlaps = [check for check in json.loads(done.stdout)["checks"] if check["name"].startswith("overlap")]
    assert (done.exit_code, {check["count"] for check in overlaps}) == (0, {0})


def test_several_files_have_their_own_names(rows, ftray):
    done = ftray("audit", "train.jsonl", "test.jsonl", *TEMPLATES, "--json")
    assert [one["name"] for one in json.loads(done.stdout)["datasets"]] == ["train-2", "test-2"]


def test_no_file_takes_a_role_by_its_name(rows, ftray):
    """An evaluation file called train.jsonl is compared with, and equal names are told apart."""
    (rows / "held").mkdir()
    (rows / "held/train.jsonl").write_text((rows / "train.jsonl").read_text())
    done = ftray(
        "audit",
        "train.jsonl",
        "--against",
        "test.jsonl",
        "--against",
        "held/train.jsonl",
        *TEMPLATES,
        "--json",
        "--gate",
    )
    record = json.loads(done.stdout)
    assert {one["name"]: one["rows"] for one in record["datasets"]} == {"train": 300, "test": 100, "train-2": 300}
    (exact,) = [check for check in record["checks"] if check["name"] == "overlap_exact"]
    assert (done.exit_code, exact["status"], exact["count"]) == (3, "fail", 300)


def test_a_probe_of_another_shape_needs_no_template(rows, ftray):
    (rows / "chat.jsonl").write_text(json.dumps({"prompt": "say 7 words 55433", "completion": "b"}) + "\n")
    (rows / "plain.txt").write_text("Once there was a fox.\n")
    against = ("--against", "test.jsonl", "--against", "chat.jsonl", "--against", "plain.txt")
    record = json.loads(ftray("audit", "train.jsonl", *against, *TEMPLATES, "--json").stdout)
    assert {one["name"]: one["rows"] for one in record["datasets"]}["chat"] == 1
    (exact,) = [check for check in record["checks"] if check["name"] == "overlap_exact"]
    assert exact["facts"]["found"]["chat"] == {"count": 1, "rows": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train.jsonl", "--against", "./train.jsonl"), "is training data and what it is compared with"),
        (("job.yaml",), "is a job, and this command reads data"),
        (("nothing.jsonl",), "there is no file"),
        (("train.jsonl", "--prompt", "{text}"), "has no `completion` template"),
        (("train.jsonl", *TEMPLATES, "--write-clean", "train.jsonl"), "would overwrite the data it reads"),
        (
            ("train.jsonl", "--against", "test.jsonl", *TEMPLATES, "--write-clean", "test.jsonl"),
            "would overwrite the data it reads",
        ),
        (("train.jsonl", *TEMPLATES, "--write-clean", "nowhere/clean.jsonl"), "its folder is missing"),
        (("train.jsonl", *TEMPLATES, "--write-clean", "clean.csv"), "does not end in .jsonl"),
        (("train.jsonl", *TEMPLATES, "--answers", "labels"), "--answers labels says nothing"),
        (("train.jsonl", *TEMPLATES, "--answers", "("), "--answers: "),
    ],
)
def test_bad_input_is_one_screen(rows, ftray, arguments, message):
    done = ftray("audit", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
