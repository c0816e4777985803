"""A task answered alone, and by two ranks that share the rows."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from ftray.data.tokenization import Tokenization
from ftray.errors import RunError
from ftray.evaluate.config import Metric
from ftray.evaluate.predict import Asked, RowPrediction, predict_slots, predict_task
from ftray.evaluate.tasks import Task, build_task
from ftray.group import Alone, Group
from ftray.model.bank_peft import adapter_in_bank
from ftray.model.bank_route import BASE
from ftray.model.config import MethodConfig
from ftray.model.lora import attach_lora, base_only

EXPECTED = ["yes", "no, never", "maybe some other day, when the weather is better", "yes", "no"]
METRICS = [Metric(max_new_tokens=6), Metric(metric="choice"), Metric(metric="nll"), Metric(metric="macro_f1")]


class ThreadGroup:
    """Ranks that are threads of this process and meet at a barrier."""

    def __init__(self, rank: int, meeting: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.size = rank, len(board)
        self.meeting, self.board = meeting, board

    def gather(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.meeting.wait(timeout=30)
        values = list(self.board)
        self.meeting.wait(timeout=30)
        return values

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def total(self, values: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self.gather(values), strict=True)]


def predict(task: Task, model: LlamaForCausalLM, tokenization: Tokenization, group: Group) -> list[RowPrediction]:
    asked = Asked(
        model=model,
        tokenizer=tokenization.tokenizer,
        stop_token_ids=tokenization.stop_token_ids,
        layout="padded",
        group=group,
        synchronised=group.size > 1,
    )
    return predict_task(task, asked)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.metric)
def test_ranks_share_the_rows_run_equally_often_and_all_know_everything(
    tiny_model: LlamaForCausalLM, tokenization: Tokenization, metric: Metric, task_of: Any
) -> None:
    task = task_of(tokenization, EXPECTED, metric)
    alone = predict(task, tiny_model, tokenization, Alone())
    assert [row.row for row in alone] == list(range(len(EXPECTED)))

    models = [copy.deepcopy(tiny_model) for _ in range(2)]
    forwards = [0, 0]
    for rank, model in enumerate(models):

        def count(*_: Any, rank: int = rank) -> None:
            forwards[rank] += 1

        model.register_forward_hook(count)
    meeting, board = threading.Barrier(2), [None, None]
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(predict, task, models[rank], tokenization, ThreadGroup(rank, meeting, board))
            for rank in range(2)
        ]
        first, second = (run.result(timeout=60) for run in runs)
    assert first == second
    assert [row.prediction for row in first] == [row.prediction for row in alone]
    assert [row.score for row in first] == pytest.approx([row.score for row in alone])
    assert forwards[0] == forwards[1] > 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.metric)
def test_base_and_tuned_answer_in_one_batch_what_they_answer_alone(
    tiny_model: LlamaForCausalLM, tokenization: Tokenization, metric: Metric, task_of: Any
) -> None:
    task = task_of(tokenization, EXPECTED, metric)
    model: Any = attach_lora(tiny_model, MethodConfig(rank=2), base_name="b", seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    tuned = predict(task, model, tokenization, Alone())
    with base_only(model):
        base = predict(task, model, tokenization, Alone())
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    tiny_model.register_forward_hook(count)
    asked = Asked(
        model=model, tokenizer=tokenization.tokenizer, stop_token_ids=tokenization.stop_token_ids, layout="padded"
    )
    with adapter_in_bank(model) as bank:
        assert bank is not None
        together = predict_slots([task], asked, bank, (BASE, 1))
    both = forwards
    predict(task, model, tokenization, Alone())
    assert both <= forwards - both + 1, "both took as many passes as one"
    for alone, answers in zip((base, tuned), together, strict=True):
        found = answers[task.name]
        assert [row.prediction for row in found] == [row.prediction for row in alone]
        assert [row.score for row in found] == pytest.approx([row.score for row in alone], rel=1e-4)
    assert [row.score for row in base] != pytest.approx([row.score for row in tuned], rel=1e-4) or (
        [row.prediction for row in base] != [row.prediction for row in tuned]
    )


def test_a_choice_is_graded_as_an_answer(
    tiny_model: LlamaForCausalLM, tokenization: Tokenization, task_of: Any
) -> None:
    rows = predict(task_of(tokenization, EXPECTED, METRICS[1]), tiny_model, tokenization, Alone())
    assert {row.prediction for row in rows} <= set(EXPECTED)
    assert all(row.correct == (row.prediction == row.expected) for row in rows)


def test_likelihood_rows_carry_their_sums(tiny_model: LlamaForCausalLM, tokenization: Tokenization, plain: Any) -> None:
    task = build_task(
        [plain("Once upon a time")],
        name="stories",
        role="general",
        metric=Metric(metric="bits_per_byte"),
        tokenization=tokenization,
    )
    (row,) = predict(task, tiny_model, tokenization, Alone())
    assert (row.num_labels, row.num_bytes, row.prediction, row.correct) == (17, 16, "", None)
    # One token a byte, and an end of text that costs without being a byte: near 8 bits for a random model.
    assert 6 < row.score < 14


def test_likelihoods_that_are_not_numbers_end_the_run(
    tiny_model: LlamaForCausalLM, tokenization: Tokenization, task_of: Any
) -> None:
    with torch.no_grad():
        tiny_model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="row 0 of 'test'") as raised:
        predict(task_of(tokenization, ["yes"], METRICS[2]), tiny_model, tokenization, Alone())
    assert raised.value.kind == "nonfinite"
