"""General probes from lm-eval: refused in words without it; with it real tasks from local files on a tiny model."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ftray.artifacts import read_json, read_lines
from ftray.check import check_job
from ftray.errors import InputError, RunError
from ftray.evaluate.config import LmEvalProbe
from ftray.evaluate.lm_eval import ask_lm_eval, build_lm_eval_task, require_lm_eval
from ftray.evaluate.predict import Asked, RowPrediction, predict_task
from ftray.evaluate.tasks import Task
from ftray.finetune import finetune
from ftray.job import Job, LoadedJob, load_job, run_directory, run_id_of
from ftray.model.base import load_model, load_tokenizer
from ftray.model.config import MethodConfig
from ftray.model.lora import attach_lora, base_only
from ftray.preflight import check
from ftray.quickstart.pretrain import MAX_LENGTH, tiny_base
from ftray.reevaluation import evaluate_again, own_questions
from ftray.subject import subject_of_run

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZES = ("big", "little", "red", "very old")
CHOICES = ["cat.", "tree in the park.", "ball", "xylophone"]
NUM_ROWS = 14
MEAN = {"aggregation": "mean", "higher_is_better": True}
CHOICE: dict[str, Any] = {
    "task": "park",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [
        {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
        {"metric": "acc", **MEAN},
        {"metric": "acc_norm", **MEAN},
    ],
}
WRITTEN: dict[str, Any] = {
    "task": "written",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
    "num_fewshot": 2,
    "fewshot_split": "test",
    "metric_list": [{"metric": "exact_match", **MEAN}],
}
ROLLING: dict[str, Any] = {
    "task": "rolling",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, a job, and tasks of lm-eval over one file of rows."""
    place = tmp_path_factory.mktemp("lm-eval")
    tiny_base(place / "model", seed=0)
    tasks = place / "tasks"
    tasks.mkdir()
    rows = [
        {"question": f"Once there was a {SIZES[n % 4]} dog number {n}. It saw a", "choices": CHOICES, "answer": n % 4}
        for n in range(NUM_ROWS)
    ]
    write_rows(tasks / "rows.jsonl", rows)
    for name, task in {"park": CHOICE, "written": WRITTEN, "rolling": ROLLING}.items():
        write_task(tasks / f"{name}.yaml", task, cache=place / "cache")
    asked = [{"prompt": f"number {n}?", "completion": ("odd", "even")[n % 2]} for n in range(80)]
    write_rows(place / "train.jsonl", asked[:64])
    write_rows(place / "test.jsonl", asked[64:])
    job = {
        "name": "probed",
        "model": "model",
        "data": {"train": {"path": "train.jsonl"}, "validation": 0.25, "test": {"path": "test.jsonl"}},
        "evaluate": {
            "task": {"max_new_tokens": 3},
            "general": [{"name": "park", "lm_eval": "tasks/park.yaml", "limit": 12}],
        },
        "train": {"max_steps": 3, "batch_size": 8, "learning_rate": 0.05},
        "audit": {"accept": [{"check": "size", "reason": "a small file, for a test"}]},
        "compute": {"workers": 0},
        "tracking": [],
    }
    (place / "job.yaml").write_text(yaml.safe_dump(job))
    return place


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(path: Path, task: dict[str, Any], *, cache: Path, rows: str = "rows.jsonl") -> None:
    source = {"data_files": {"test": rows}, "cache_dir": str(cache)}
    path.write_text(yaml.safe_dump({"dataset_path": "json", "dataset_kwargs": source, "test_split": "test", **task}))


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)


@pytest.fixture
def folder(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "job"))


@pytest.fixture
def lm_eval() -> Any:
    """Return the package, or skip."""
    return pytest.importorskip("lm_eval")


@pytest.fixture
def built(world: Path, lm_eval: Any) -> Callable[..., Task]:
    """Return a builder of tasks from the files of the world."""

    def build(name: str, **settings: Any) -> Task:
        probe = LmEvalProbe(name="probe", lm_eval=str(world / "tasks" / f"{name}.yaml"), **settings)
        tokenizer = load_tokenizer(str(world / "model"))
        return build_lm_eval_task(probe, tokenizer=tokenizer, max_length=MAX_LENGTH)

    return build


@pytest.fixture(scope="module")
def adapted(world: Path) -> Any:
    """Return the model with an adapter that changes its answers."""
    model: Any = attach_lora(load_model(str(world / "model")), MethodConfig(rank=4), base_name="model", seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return model.train()


def load(folder: Path, *sets: str) -> LoadedJob:
    return load_job(folder / "job.yaml", sets=sets, storage=str(folder / "runs"))


def prepared(loaded: LoadedJob) -> Any:
    run_id = run_id_of(loaded)
    return check(loaded, run_id=run_id, run=run_directory(loaded, run_id))


# The job file.


@pytest.mark.parametrize(
    ("probe", "kind", "path"),
    [
        ({"lm_eval": "arc_easy", "path": "rows.jsonl"}, "unknown_key", "evaluate.general.0.path"),
        ({"lm_eval": "arc_easy", "prompt": "{text}"}, "unknown_key", "evaluate.general.0.prompt"),
        ({"lm_eval": "arc_easy", "max_new_tokens": 3}, "unknown_key", "evaluate.general.0.max_new_tokens"),
        ({"lm_eval": "arc_easy", "limit": 0}, "bad_value", "evaluate.general.0.limit"),
        ({"lm_eval": None}, "bad_value", "evaluate.general.0.lm_eval"),
        ({"path": "rows.jsonl", "shots": 3}, "unknown_key", "evaluate.general.0.shots"),
        ({}, "missing_key", "evaluate.general.0.path"),
    ],
)
def test_a_probe_is_either_of_lm_eval_or_of_a_source(folder: Path, probe: Any, kind: str, path: str) -> None:
    with pytest.raises(InputError) as error:
        load(folder, f"evaluate.general={json.dumps([{'name': 'arc', **probe}])}")
    assert (error.value.kind, error.value.path) == (kind, path)
    if kind == "unknown_key":
        assert ("lm_eval" in error.value.allowed) == ("lm_eval" in probe), "what that kind of probe knows"


def test_a_task_file_is_found_beside_the_job_and_a_name_stays_a_name(folder: Path) -> None:
    loaded = load(folder, 'evaluate.general.0={"name": "arc", "lm_eval": "arc_easy"}')
    assert [probe.lm_eval for probe in loaded.job.evaluate.lm_eval_probes] == ["arc_easy"]
    loaded = load(folder)
    assert loaded.job.evaluate.lm_eval_probes[0].lm_eval == str(folder / "tasks" / "park.yaml")
    assert Job.model_validate_json(json.dumps(loaded.job.model_dump(mode="json"))) == loaded.job


def test_a_probe_is_no_part_of_the_run_id(folder: Path) -> None:
    assert run_id_of(load(folder)) == run_id_of(load(folder, "evaluate.general=[]"))


# Without lm-eval, and where it cannot ask.


def test_without_lm_eval_the_check_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    (folder / "train.jsonl").write_text("no JSON: the data is not even read\n")
    with pytest.raises(InputError) as error:
        check_job(load(folder))
    assert (error.value.kind, error.value.path) == ("missing_extra", "evaluate.general.park.lm_eval")
    assert "pip install 'ftray[lm-eval]'" in error.value.hint
    assert require_lm_eval([]) is None, "a job without such probes needs no lm-eval"


def test_an_lm_eval_with_another_interface_is_refused(lm_eval: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.4.9")
    with pytest.raises(InputError, match=r"whose version here is 0\.4\.9") as error:
        require_lm_eval([LmEvalProbe(name="arc", lm_eval="arc_easy")])
    assert error.value.kind == "missing_extra"


def test_weights_that_are_shared_out_are_refused_before_anything_starts(folder: Path) -> None:
    with pytest.raises(InputError) as error:
        check_job(load(folder, "compute.workers=2", "compute.deepspeed.stage=3"))
    assert (error.value.kind, error.value.path) == ("unsupported", "compute.deepspeed.stage")


# With it: what a task says before it is asked.


def test_rows_and_metric_are_known_beforehand(built: Callable[..., Task]) -> None:
    task = built("park")
    assert (task.role, task.metric.metric, len(task.rows)) == ("general", "lm_eval:acc", NUM_ROWS)
    assert [row.row for row in task.rows] == list(range(NUM_ROWS))
    assert task.rows[5].prompt == "Once there was a little dog number 5. It saw a"
    assert task.rows[5].expected == CHOICES[1]
    assert [row.prompt for row in built("park", limit=3).rows] == [row.prompt for row in task.rows[:3]]
    assert built("park", metric="acc_norm").metric.metric == "lm_eval:acc_norm"


@pytest.mark.parametrize(
    ("name", "settings", "kind", "said"),
    [
        ("rolling", {}, "metric_mismatch", "bits_per_byte"),
        ("park", {"metric": "mcc"}, "metric_mismatch", "mcc"),
        ("park", {"metric": "accuracy"}, "unknown_metric", "accuracy"),
        ("absent", {}, "missing_file", "there is no such file"),
    ],
)
def test_what_cannot_be_compared_row_by_row_is_refused(
    built: Callable[..., Task], name: str, settings: Any, kind: str, said: str
) -> None:
    with pytest.raises(InputError) as error:
        built(name, **settings)
    assert error.value.kind == kind
    assert said in f"{error.value.message} {error.value.hint}"
    if name == "park":
        assert error.value.allowed == ["acc", "acc_norm"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset_kwargs": {"data_files": {"test": "absent.jsonl"}}}, "cannot be loaded"),
        ({"dataset_path": "nobody/has-such-rows", "dataset_kwargs": {}}, "cannot be loaded"),
        ({"doc_to_target": "{{choices[answer}}"}, "cannot be loaded"),
        ({"test_split": "train"}, "cannot be loaded"),
        ({"unsafe_code": True}, "code that the model writes"),
        ({"output_type": "generate_until", "generation_kwargs": {"until": ["\n"]}}, f"the model reads {MAX_LENGTH}"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_in_a_sentence(
    folder: Path, lm_eval: Any, change: dict[str, Any], said: str
) -> None:
    metrics = {"metric_list": [{"metric": "exact_match", **MEAN}]} if "output_type" in change else {}
    write_task(folder / "tasks" / "park.yaml", {**CHOICE, **metrics, **change}, cache=folder / "cache")
    with pytest.raises(InputError) as error:
        prepared(load(folder))
    assert said in error.value.message
    assert error.value.path == "evaluate.general.park.lm_eval"


def test_names_are_looked_up_before_the_training(folder: Path, lm_eval: Any) -> None:
    for name, said in (("arc_eazy", "Did you mean 'arc_easy'?"), ("mmlu", "group of tasks")):
        with pytest.raises(InputError) as error:
            prepared(load(folder, f"evaluate.general.0.lm_eval={name}"))
        assert error.value.kind == "unknown_task"
        assert said in f"{error.value.message} {error.value.hint}"


def test_rows_longer_than_the_model_are_counted(folder: Path, lm_eval: Any) -> None:
    rows = [{"question": "a cat sat " * length, "choices": CHOICES, "answer": 0} for length in (1, 400, 900)]
    write_rows(folder / "tasks" / "rows.jsonl", rows)
    (note,) = [note for note in prepared(load(folder)).datasets.notes if "park" in note]
    assert "asks 3 rows" in note
    assert "2 are longer than the model reads" in note


# With it: what models answer.


def test_options_are_ranked_as_by_a_fresh_model_on_one_row_at_a_time(
    world: Path, built: Callable[..., Task], adapted: Any
) -> None:
    """Padded batches through the flat attention, against transformers' own attention on single rows."""
    from transformers import AutoModelForCausalLM

    task, tokenizer = built("park"), load_tokenizer(str(world / "model"))
    before = {name: parameter.data_ptr() for name, parameter in adapted.named_parameters()}
    tuned = ask_lm_eval(task, adapted, tokenizer)
    with base_only(adapted):
        base = ask_lm_eval(task, adapted, tokenizer)
    fresh = AutoModelForCausalLM.from_pretrained(world / "model", attn_implementation="eager").eval()
    assert [answer.text for answer in base] == [likeliest(fresh, tokenizer, row.prompt) for row in task.rows]
    assert [answer.text for answer in tuned] == [likeliest(adapted.eval(), tokenizer, row.prompt) for row in task.rows]
    assert [answer.text for answer in base] != [answer.text for answer in tuned]
    adapted.train()
    for answers in (base, tuned):
        assert [answer.correct for answer in answers] == [
            answer.text == row.expected for answer, row in zip(answers, task.rows, strict=True)
        ]
    assert {name: parameter.data_ptr() for name, parameter in adapted.named_parameters()} == before


def likeliest(model: Any, tokenizer: Any, prompt: str) -> str:
    """Return the option with the highest log-likelihood, each alone in its forward pass."""
    known = len(tokenizer(prompt)["input_ids"])
    scores = []
    for choice in CHOICES:
        tokens = torch.tensor([tokenizer(f"{prompt} {choice}")["input_ids"]])
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1].log_softmax(-1)
        scores.append(float(logits.gather(1, tokens[0, 1:, None])[known - 1 :].sum()))
    return CHOICES[scores.index(max(scores))]


def test_written_answers_are_those_of_a_fresh_model(world: Path, built: Callable[..., Task], adapted: Any) -> None:
    from transformers import AutoModelForCausalLM

    task, tokenizer = built("written", limit=9), load_tokenizer(str(world / "model"))
    assert task.metric.metric == "lm_eval:exact_match"
    assert task.rows[0].prompt.count("Once there was") == 3, "two examples and the question"
    with base_only(adapted):
        base = ask_lm_eval(task, adapted, tokenizer)
    fresh = AutoModelForCausalLM.from_pretrained(world / "model", attn_implementation="eager").eval()
    for row, answer in zip(task.rows, base, strict=True):
        tokens = tokenizer(row.prompt, return_tensors="pt")
        output = fresh.generate(**tokens, max_new_tokens=6, do_sample=False)[0, tokens["input_ids"].shape[1] :]
        assert tokenizer.decode(output, skip_special_tokens=True).split("\n")[0] == answer.text
    assert any(answer.text for answer in base)
    assert adapted.training, "left as it was found"


def test_rows_that_change_between_rehearsal_and_asking_are_an_error(
    world: Path, built: Callable[..., Task], adapted: Any
) -> None:
    task = built("park", limit=4)
    assert task.lm_eval is not None
    task.lm_eval.task.config.doc_to_text = "Now: {{question}}"
    with pytest.raises(RunError, match="not those that it had") as error:
        ask_lm_eval(task, adapted, load_tokenizer(str(world / "model")))
    assert error.value.kind == "data"


def test_likelihoods_that_are_no_numbers_end_the_run(world: Path, built: Callable[..., Task]) -> None:
    model = load_model(str(world / "model"))
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(RunError) as error:
        ask_lm_eval(built("park", limit=2), model, load_tokenizer(str(world / "model")))
    assert error.value.kind == "nonfinite"


class Meeting:
    """Ranks that are threads and meet at a barrier."""

    def __init__(self, rank: int, barrier: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.size = rank, len(board)
        self.barrier, self.board = barrier, board

    def gather(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait(timeout=60)
        return list(self.board)

    def any(self, flag: bool) -> bool:
        raise AssertionError("ranks that do not ask have nothing to agree on")

    def total(self, values: Any) -> list[float]:
        raise AssertionError("ranks that do not ask have nothing to add")


def test_one_rank_asks_and_all_know(world: Path, built: Callable[..., Task], adapted: Any) -> None:
    task, tokenizer = built("park", limit=5), load_tokenizer(str(world / "model"))
    barrier, board = threading.Barrier(2), [None, None]

    def answers(rank: int) -> list[RowPrediction]:
        model = adapted if rank == 0 else None  # a model that is asked nothing need not be there
        group = Meeting(rank, barrier, board)
        settings: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "stop_token_ids": (), "layout": "flat"}
        return predict_task(task, Asked(group=group, **settings))

    with ThreadPoolExecutor(2) as pool:
        first, second = (run.result(timeout=120) for run in [pool.submit(answers, rank) for rank in range(2)])
    assert first == second
    assert [row.row for row in first] == list(range(5))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_counts_what_the_probe_lost(folder: Path, lm_eval: Any, kind: str) -> None:
    """From the job to the verdict: trained, compared, forgotten, shown, and asked again with the same answers."""
    loaded = load(folder, f"method.kind={kind}")
    result = finetune(loaded, display=lambda line: None, on_plan=lambda plan: None)
    assert result["status"] == "completed", result["failure"]
    run = run_directory(loaded, run_id_of(loaded))
    evaluation = read_json(run.evaluation)
    (probe,) = [task for task in evaluation["tasks"] if task["role"] == "general"]
    assert (probe["name"], probe["metric"], probe["n"]) == ("park", "lm_eval:acc", 12)
    lines = [line for line in read_lines(run.predictions) if line["task"] == "park"]
    assert [line["row"] for line in lines] == list(range(12))
    assert all(line["base_correct"] == (line["base"] == line["expected"]) for line in lines)
    lost = sum(line["base_correct"] and not line["tuned_correct"] for line in lines)
    assert probe["paired"]["only_base"] == lost
    assert probe["base"]["value"] == pytest.approx(sum(line["base_correct"] for line in lines) / 12)
    assert evaluation["forgetting"]["n"] == 12
    assert evaluation["forgetting"]["degraded"] == lost
    assert "lm-eval acc" in run.report.read_text()

    subject = subject_of_run(run)
    again = evaluate_again(subject, own_questions(subject), folder / "again")
    assert again["tasks"] == evaluation["tasks"]


def test_the_check_says_that_nobody_audits_the_rows(folder: Path, lm_eval: Any) -> None:
    record = check_job(load(folder))
    assert record["rows"]["probes"] == {}
    (note,) = [note for note in record["notes"] if "park" in note]
    assert "12 rows" in note
    assert "lm_eval:acc" in note
    assert "not checked" in note
