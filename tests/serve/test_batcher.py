"""Rows that share passes answer what PEFT answers for each alone, whoever joins or leaves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_world import EQUAL_FAMILIES, RANK, fill, peft_model
from engine_world import first_difference, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from ftray.errors import InputError
from ftray.model.bank import Bank
from ftray.model.base import load_model
from ftray.serve.asking import Sampling
from ftray.serve.engine.batcher import Batcher
from ftray.serve.engine.detokenise import Vocabulary
from ftray.serve.engine.passes import Passes
from ftray.serve.engine.rows import Row, Speech
from ftray.serve.engine.sampler import Draw

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
VOCABULARY = Vocabulary(make_tokenizer())
GREEDY = Sampling(temperature=0.0)


def make_row(
    prompt: Sequence[int], *, limit: int, slot: int = 0, sampling: Sampling = GREEDY, seed: int = 0, **more: Any
) -> Row:
    return Row(
        prompt=list(prompt), limit=limit, slot=slot, stops=frozenset(), draw=Draw(sampling, seed=seed),
        speech=Speech(VOCABULARY), **more,
    )  # fmt: skip


def make_arms(folder: Path) -> tuple[Passes, dict[int, Any]]:
    """Return passes over a base with adapters in slots 1 to 3, and the models that PEFT makes of them."""
    plain: Any = load_model(str(folder)).eval()
    models = {slot: peft_model(plain, slot) for slot in (1, 2, 3)}
    base = load_model(str(folder))
    bank = Bank(base, slots=3, rank=RANK, freeze=False)
    fill(bank, models)
    return Passes(base, bank=bank), {0: plain, **models}


def run(batcher: Batcher, rows: Sequence[Row], *, seed: int = 0) -> None:
    """Let rows come at random times until all have ended."""
    coming, chance = list(rows), random.Random(seed)
    while coming or batcher.has_work:
        for _ in range(chance.choice([0, 0, 1, 2])):
            if coming:
                batcher.submit(coming.pop(0))
        batcher.step()


def random_rows(number: int, *, arms: int = 4, vocabulary: int = 61, longest: int = 30, seed: int = 1) -> list[Row]:
    chance = random.Random(seed)
    return [
        make_row(
            [chance.randrange(3, vocabulary) for _ in range(chance.randint(1, longest))],
            limit=chance.choice([1, 3, 9, 24]),
            slot=index % arms,
        )
        for index in range(number)
    ]


@pytest.mark.parametrize("family", [*EQUAL_FAMILIES, "gemma2"])
def test_rows_that_come_and_go_answer_as_peft_answers_alone(families: dict[str, Path], family: str) -> None:
    passes, models = make_arms(families[family])
    passes.verify()
    # Few places, and prompts in chunks: rows wait, move and read while others run.
    batcher = Batcher(passes, slots=5, prefill_tokens=12)
    rows = random_rows(24)
    run(batcher, rows)
    assert [len(row.answer) for row in rows] == [row.limit for row in rows]
    found = Counter(first_difference(models[row.slot], row.prompt, row.answer) for row in rows)
    assert found["different"] == 0
    assert found["equal"] >= 22, "ties within 1e-4 are rare"


def test_the_comparison_sees_rows_of_the_wrong_arm(families: dict[str, Path]) -> None:
    passes, models = make_arms(families["llama"])
    batcher = Batcher(passes, slots=5)
    rows = random_rows(16)
    run(batcher, rows)
    for row in rows:
        if row.limit > 3:
            assert first_difference(models[(row.slot + 1) % 4], row.prompt, row.answer) == "different"


def test_who_shares_the_batch_does_not_change_a_drawn_answer(families: dict[str, Path]) -> None:
    passes, _ = make_arms(families["llama"])
    sampling = Sampling(temperature=1.0, top_p=0.9, top_k=20)
    prompt = [5, 9, 17]
    answers = []
    for company in (0, 3, 11):
        batcher = Batcher(passes, slots=6)
        row = make_row(prompt, limit=20, slot=2, sampling=sampling, seed=7)
        run(batcher, [*random_rows(company, seed=company), row], seed=company)
        answers.append(row.answer)
    assert answers[0] == answers[1] == answers[2]
    other = make_row(prompt, limit=20, slot=2, sampling=sampling, seed=8)
    run(Batcher(passes, slots=6), [other])
    assert other.answer != answers[0]


def test_a_short_answer_overtakes_a_long_one(families: dict[str, Path]) -> None:
    passes, _ = make_arms(families["llama"])
    batcher = Batcher(passes, slots=4)
    long, short = make_row([5, 6], limit=40), make_row([7, 8, 9], limit=4, slot=1)
    batcher.submit(long)
    for _ in range(5):
        batcher.step()
    batcher.submit(short)
    while not short.ended:
        batcher.step()
    assert len(long.answer) < 12


def test_running_rows_never_wait_for_a_long_prompt(families: dict[str, Path]) -> None:
    passes, models = make_arms(families["llama"])
    batcher = Batcher(passes, slots=4, prefill_tokens=8)
    running = make_row([5, 6], limit=30)
    batcher.submit(running)
    batcher.step()
    long = make_row(list(range(3, 43)), limit=5, slot=3)
    batcher.submit(long)
    steps = 0
    while not long.answer:
        before = len(running.answer)
        batcher.step()
        steps += 1
        assert len(running.answer) == before + 1
    assert steps == 5, "40 tokens, 8 a step"
    while batcher.has_work:
        batcher.step()
    assert first_difference(models[3], long.prompt, long.answer) in ("equal", "tie")


def test_prompts_of_similar_length_are_read_together(families: dict[str, Path]) -> None:
    passes, _ = make_arms(families["llama"])
    batcher = Batcher(passes, slots=8, prefill_tokens=64)
    for index in range(8):
        batcher.submit(make_row(range(3, 11 + index), limit=2, slot=index % 4))
    before = passes.passes
    batcher.step()
    assert passes.passes - before == 2, "one pass reads eight prompts, one gives each its second token"


def test_a_cancelled_row_frees_its_place_at_once(families: dict[str, Path]) -> None:
    passes, models = make_arms(families["llama"])
    batcher = Batcher(passes, slots=2)
    gone, stays, waits = (make_row([5 + n, 6], limit=20, slot=n) for n in range(3))
    for row in (gone, stays, waits):
        batcher.submit(row)
    batcher.step()
    assert not waits.answer
    batcher.cancel(gone)
    assert gone.ended
    batcher.step()
    assert waits.answer
    length = len(gone.answer)
    while batcher.has_work:
        batcher.step()
    assert len(gone.answer) == length
    for row in (stays, waits):
        assert first_difference(models[row.slot], row.prompt, row.answer) in ("equal", "tie")


def test_a_row_that_waits_can_be_cancelled(families: dict[str, Path]) -> None:
    passes, _ = make_arms(families["llama"])
    batcher = Batcher(passes, slots=1)
    rows = [make_row([5], limit=3) for _ in range(3)]
    for row in rows:
        batcher.submit(row)
    batcher.cancel(rows[1])
    while batcher.has_work:
        batcher.step()
    assert [len(row.answer) for row in rows] == [3, 0, 3]


def test_shadows_give_way_and_go_on_where_they_were(families: dict[str, Path]) -> None:
    passes, models = make_arms(families["llama"])
    batcher = Batcher(passes, slots=2)
    shadows = [make_row([5 + n, 6], limit=12, slot=n, is_shadow=True) for n in range(3)]
    for row in shadows:
        batcher.submit(row)
    for _ in range(4):
        batcher.step()
    assert len(shadows[1].answer) > 1
    awaited = [make_row([20 + n], limit=6, slot=3) for n in range(2)]
    for row in awaited:
        batcher.submit(row)
    batcher.step()
    assert all(row.answer for row in awaited)
    stood = [len(row.answer) for row in shadows]
    for _ in range(3):
        batcher.step()
    assert [len(row.answer) for row in shadows] == stood
    while batcher.has_work:
        batcher.step()
    for row in (*shadows, *awaited):
        assert len(row.answer) == row.limit
        assert first_difference(models[row.slot], row.prompt, row.answer) in ("equal", "tie")


def test_late_rows_are_ended(families: dict[str, Path]) -> None:
    passes, _ = make_arms(families["llama"])
    batcher = Batcher(passes, slots=1)
    early, late = make_row([5], limit=9, deadline=10.0), make_row([6], limit=9, deadline=20.0)
    batcher.submit(early)
    batcher.submit(late)
    batcher.step()
    assert batcher.expired(9.9) == []
    assert batcher.expired(10.0) == [early]
    batcher.step()
    assert late.answer
    assert not early.answer[2:]


def test_an_answer_longer_than_the_first_cache(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=640, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    plain = load_model(str(tmp_path)).eval()
    passes = Passes(load_model(str(tmp_path)))
    batcher = Batcher(passes, slots=3)
    rows = [make_row([5, 6, 7], limit=600), make_row(range(3, 43), limit=10), make_row([9], limit=400)]
    run(batcher, rows)
    assert [len(row.answer) for row in rows] == [600, 10, 400]
    assert all(first_difference(plain, row.prompt, row.answer) != "different" for row in rows)
    assert passes.cache.columns == 256, "an idle engine gives back what a long answer took"


def test_the_cache_stays_within_its_bound(families: dict[str, Path]) -> None:
    passes, models = make_arms(families["llama"])
    batcher = Batcher(passes, slots=8, cache_tokens=100)
    rows = [make_row([5 + n] * 10, limit=21, slot=n % 4) for n in range(8)]
    for row in rows:
        batcher.submit(row)
    most = 0
    while batcher.has_work:
        batcher.step()
        most = max(most, len(batcher.rows))
        assert passes.cache.places * passes.cache.columns <= 100
    assert most == 3, "three rows of 30 columns"
    assert all(first_difference(models[row.slot], row.prompt, row.answer) != "different" for row in rows)


def test_an_adapter_whose_numbers_overflow_hurts_nobody_else(families: dict[str, Path]) -> None:
    passes, models = make_arms(families["llama"])
    assert passes.bank is not None
    batcher = Batcher(passes, slots=3)
    healthy = make_row([5, 6, 7], limit=20, slot=1)
    broken = make_row([8, 9], limit=20, slot=2)
    for row in (healthy, broken):
        batcher.submit(row)
    batcher.step()
    passes.bank.weights[1].fill_(float("nan"))
    grown = batcher.step()
    assert [growth.row for growth in grown if growth.piece is None] == [broken]
    after = make_row([11, 12], limit=20, slot=3)
    batcher.submit(after)
    while batcher.has_work:
        batcher.step()
    for row in (healthy, after):
        assert first_difference(models[row.slot], row.prompt, row.answer) in ("equal", "tie")


def test_what_a_half_read_prompt_was_does_not_matter(families: dict[str, Path]) -> None:
    passes, models = make_arms(families["qwen2"])
    batcher = Batcher(passes, slots=2, prefill_tokens=4)
    first = make_row([4, 5], limit=30)
    batcher.submit(first)
    batcher.step()
    half = make_row(range(3, 33), limit=5, slot=1)
    batcher.submit(half)
    batcher.step()
    assert 0 < half.cached < 30
    batcher.cancel(half)
    next_one = make_row(range(33, 60), limit=8, slot=2)
    batcher.submit(next_one)
    while batcher.has_work:
        batcher.step()
    for row in (first, next_one):
        assert first_difference(models[row.slot], row.prompt, row.answer) in ("equal", "tie")


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=61, hidden_size=16, state_size=4, num_hidden_layers=1)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError) as refused:
        Passes(load_model(str(tmp_path)))
    assert refused.value.kind == "unsupported_model"


def test_a_model_that_computes_otherwise_in_shared_passes_is_refused(families: dict[str, Path]) -> None:
    passes, _ = make_arms(families["mistral"])
    # As if this code did not know of the window.
    passes.windows = {"full_attention": None}
    with pytest.raises(InputError, match="off by") as refused:
        passes.verify()
    assert refused.value.kind == "unsupported_model"


def test_log_probabilities_are_those_of_a_plain_forward(families: dict[str, Path]) -> None:
    passes, models = make_arms(families["llama"])
    batcher = Batcher(passes, slots=4)
    sampling = Sampling(temperature=0.7, logprobs=3)
    row = make_row([5, 9, 17], limit=12, slot=3, sampling=sampling)
    pieces = []
    for other in random_rows(6):
        batcher.submit(other)
    batcher.submit(row)
    while batcher.has_work:
        pieces += [growth.piece for growth in batcher.step() if growth.row is row and growth.piece is not None]
    told = [one for piece in pieces for one in piece.logprobs]
    assert [one.token_id for one in told] == row.answer
    whole = [*row.prompt, *row.answer]
    with torch.no_grad():
        logits = models[3](input_ids=torch.tensor([whole])).logits[0, len(row.prompt) - 1 : -1]
    expected = logits.double().log_softmax(dim=-1)
    for place, one in enumerate(told):
        assert one.logprob == pytest.approx(float(expected[place, one.token_id]), abs=1e-4)
        values, indices = expected[place].topk(3)
        assert [token for token, _, _ in one.top] == indices.tolist()
        assert [logprob for _, _, logprob in one.top] == pytest.approx(values.tolist(), abs=1e-4)
