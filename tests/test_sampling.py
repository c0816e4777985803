"""Texts sampled from a base: its own distribution, the same texts again, and no text lost to an interruption."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from ftray import sampling as sampling_module
from ftray.artifacts import read_lines, try_lock
from ftray.data.replay import read_sampled
from ftray.data.tokenization import Tokenization, TokenizedExample
from ftray.errors import InputError, Interrupted, RunError
from ftray.job import LoadedJob, load_job
from ftray.model.base import load_tokenizer
from ftray.quickstart.pretrain import tiny_base
from ftray.sampling import BATCH, Sampling, choose_at, sample_base, sampling_of
from ftray.work import prepare_data

JOB = """\
name: tiny
model: base
data:
  train: {path: train.jsonl}
  max_length: 48
  replay: {sample_base: 40, fraction: 0.25}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    tiny_base(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def load(folder: Path, *sets: str, **how: Any) -> LoadedJob:
    return load_job(folder / "job.yaml", sets=sets, **how)


def wanted(loaded: LoadedJob) -> Sampling:
    found = sampling_of(loaded, load_tokenizer(loaded.job.model))
    assert found is not None
    return found


def sample(loaded: LoadedJob, *, on_progress: Any = lambda done, total: None) -> Sampling:
    sampling = wanted(loaded)
    sample_base(sampling, load_tokenizer(loaded.job.model), on_progress=on_progress)
    return sampling


def texts(sampling: Sampling) -> list[str]:
    return [line["text"] for line in read_lines(sampling.texts.file)]


def test_a_choice_has_the_models_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    count = 20_000
    draws = np.random.default_rng(0).random((count, 1))
    chosen = choose_at(draws, range(count), [0] * count, logits.expand(count, -1))
    expected = torch.softmax(logits[0].double(), dim=0).numpy() * count
    assert stats.chisquare(np.bincount(chosen.numpy(), minlength=4), expected).pvalue > 1e-3


def test_the_smallest_and_the_largest_draw_are_tokens_that_can_be() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, -1)
    draws = np.array([[0.0], [np.nextafter(1.0, 0.0)]])
    assert choose_at(draws, [0, 1], [0, 0], logits).tolist() == [1, 2]


def test_texts_are_as_many_as_asked_for_and_fit(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    sampling = sample(load(folder), on_progress=lambda *progress: told.append(progress))
    found = texts(sampling)
    assert len(found) == 40
    assert all(text.strip() for text in found)
    assert len(set(found)) > 30
    assert told[0] == (0, 40)
    assert told[-1] == (40, 40)
    tokenization = Tokenization(
        load_tokenizer(str(folder / "base")), template=None, loss_on="all_turns", max_length=sampling.texts.longest
    )
    # This base says half characters, which take more tokens when they are read back; models that learned do not.
    encoded = tokenization.encode_batch(read_sampled(sampling.texts.file))
    assert sum(isinstance(one, TokenizedExample) for one in encoded) > 20
    assert not list(folder.glob("runs/replay/*.part"))


def test_the_same_job_has_the_same_texts_and_another_seed_others(folder: Path) -> None:
    first = sample(load(folder))
    again = sample(load(folder, storage=str(folder / "elsewhere")))
    assert first.texts.file != again.texts.file
    assert first.texts.file.read_bytes() == again.texts.file.read_bytes()
    other = sample(load(folder, "seed=1"))
    assert set(texts(first)).isdisjoint(set(texts(other)) - {""})


def test_texts_of_another_precision_are_other_texts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"is {n} odd?", "completion": "ab"[n % 2]} for n in range(60)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load(folder)
    tokenizer = load_tokenizer(loaded.job.model)
    here, there = (sampling_of(loaded, tokenizer, precision=precision) for precision in ("fp32", "bf16"))
    assert here is not None
    assert there is not None
    assert here.texts.file != there.texts.file
    assert (wanted(loaded).precision, wanted(loaded).texts.file) == ("fp32", here.texts.file)
    sample_base(there, tokenizer, on_progress=lambda done, total: None)
    assert not here.texts.is_there
    monkeypatch.setattr(sampling_module, "own_precision", lambda: "bf16")
    assert wanted(loaded) == there
    # A worker whose machine is another reads what the run's own process sampled.
    with pytest.raises(InputError, match="are not there"):
        prepare_data(loaded, audits=False, sampling_precision="fp32")
    assert prepare_data(loaded, audits=False, sampling_precision="bf16").replay is not None


def test_a_process_that_waits_tells_how_far_the_other_is(folder: Path) -> None:
    sampling = sample(load(folder))
    told: list[tuple[int, int]] = []
    lock, part = sampling.texts.file.with_suffix(".lock"), sampling.texts.file.with_suffix(".part")
    part.write_text("".join(sampling.texts.file.read_text().splitlines(keepends=True)[:7]))
    with lock.open("a") as held:
        assert try_lock(held)
        waiting = threading.Thread(target=lambda: sample(load(folder), on_progress=lambda *far: told.append(far)))
        waiting.start()
        waiting.join(timeout=1)
        assert waiting.is_alive()
    waiting.join(timeout=20)
    assert not waiting.is_alive()
    assert told[0] == (7, 40)


def test_a_process_at_a_standstill_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "WAIT_SECONDS", 0.6)
    file = wanted(load(folder)).texts.file
    file.parent.mkdir(parents=True)
    with file.with_suffix(".lock").open("a") as held:
        assert try_lock(held)
        with pytest.raises(RunError, match="another process samples the same texts") as caught:
            sample(load(folder))
    assert (caught.value.kind, str(file.with_suffix(".lock")) in caught.value.hint) == ("node", True)


def test_fewer_texts_are_the_first_of_more(folder: Path) -> None:
    assert texts(sample(load(folder, "data.replay.sample_base=9"))) == texts(sample(load(folder)))[:9]
    assert wanted(load(folder, smoke=True)).texts.count == 4


def test_what_is_there_is_not_sampled_again(folder: Path) -> None:
    sampling = sample(load(folder))
    sampling.texts.file.write_text("kept\n")
    sample(load(folder))
    assert sampling.texts.file.read_text() == "kept\n"


def test_an_interrupted_sampling_goes_on_from_what_is_there(folder: Path) -> None:
    undisturbed = sample(load(folder, storage=str(folder / "undisturbed")))

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        sample(load(folder), on_progress=interrupt)
    (part,) = folder.glob("runs/replay/*.part")
    assert len(read_lines(part)) == BATCH
    # A crash may leave half a batch and half a line behind it.
    with part.open("a") as file:
        file.write('{"number": 32, "text": "torn", "is_ended": true, "is_answer": false}\n{"number": 3')
    told: list[int] = []
    sampling = sample(load(folder), on_progress=lambda done, total: told.append(done))
    assert told[0] > 0
    assert sampling.texts.file.read_bytes() == undisturbed.texts.file.read_bytes()


def test_a_text_begins_after_an_empty_turn_where_there_is_no_first_token(folder: Path) -> None:
    config = folder / "base" / "tokenizer_config.json"
    record = json.loads(config.read_text())
    del record["bos_token"]
    template = record.pop("chat_template", None) or (folder / "base" / "chat_template.jinja").read_text()
    (folder / "base" / "chat_template.jinja").write_text(template.replace("{{ bos_token }}", ""))
    config.write_text(json.dumps(record))
    loaded = load(folder, "data.replay.sample_base=3")
    tokenizer = load_tokenizer(loaded.job.model)
    assert tokenizer.bos_token_id is None
    sampling = sample(loaded)
    assert tokenizer.decode(list(sampling.start)) == "User: \nBot:"
    assert all(example.messages[0].content == "" for example in read_sampled(sampling.texts.file))


def test_a_base_that_says_nothing_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "_text", lambda tokenizer, tokens, is_ended: "")
    with pytest.raises(RunError, match="128 of 128 sampled texts are empty") as caught:
        sample(load(folder))
    assert "data.replay.path" in caught.value.hint


def test_no_room_for_a_text_is_refused(folder: Path) -> None:
    loaded = load(folder)
    short = loaded.job.data.model_copy(update={"max_length": 5})
    with pytest.raises(InputError) as caught:
        wanted(dataclasses.replace(loaded, job=loaded.job.model_copy(update={"data": short})))
    assert caught.value.path == "data.max_length"


def test_a_real_model_tells_stories_that_are_read_back_as_they_were_told(shared: Path, folder: Path) -> None:
    sampling = sample(load(folder, f"model={shared / 'models' / 'stories3M'}", "data.max_length=128"))
    tokenizer = load_tokenizer(sampling.model)
    found = texts(sampling)
    for text in found:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(tokens) == text
    assert sum(text.startswith(("Once", "One")) for text in found) > 20
    assert not any("<s>" in text for text in found)
