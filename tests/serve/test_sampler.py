"""Tokens are drawn as asked, whoever shares the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.serve.asking import Sampling
from ftray.serve.engine.sampler import CANDIDATES, Draw, choose

DRAWS = 4000


def logits_of(*shares: float) -> torch.Tensor:
    return torch.tensor([shares]).log()


def frequencies(logits: torch.Tensor, sampling: Sampling) -> dict[int, float]:
    """Return how often each token is drawn, from many rows at once."""
    draws = [Draw(sampling, seed=seed) for seed in range(DRAWS)]
    tokens = [chosen.token for chosen in choose(logits.expand(DRAWS, -1), draws)]
    return {token: tokens.count(token) / DRAWS for token in sorted({token for token in tokens if token is not None})}


def test_without_temperature_the_likeliest_is_taken() -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    assert frequencies(logits, Sampling(temperature=0.0)) == {1: 1.0}
    assert frequencies(logits, Sampling(temperature=1e-9)) == {1: 1.0}


def test_tokens_come_as_often_as_their_shares() -> None:
    found = frequencies(logits_of(0.2, 0.5, 0.3), Sampling())
    assert found == pytest.approx({0: 0.2, 1: 0.5, 2: 0.3}, abs=0.03)


def test_temperature_sharpens() -> None:
    found = frequencies(logits_of(0.2, 0.5, 0.3), Sampling(temperature=0.5))
    assert found == pytest.approx({0: 0.04 / 0.38, 1: 0.25 / 0.38, 2: 0.09 / 0.38}, abs=0.03)


def test_top_k_leaves_the_likeliest() -> None:
    found = frequencies(logits_of(0.2, 0.5, 0.3), Sampling(top_k=2))
    assert found == pytest.approx({1: 0.5 / 0.8, 2: 0.3 / 0.8}, abs=0.03)
    assert frequencies(logits_of(0.2, 0.5, 0.3), Sampling(top_k=1)) == {1: 1.0}


@pytest.mark.parametrize(
    ("top_p", "left"), [(0.4, {1: 1.0}), (0.6, {1: 0.625, 2: 0.375}), (0.9, {0: 0.2, 1: 0.5, 2: 0.3}), (0.0, {1: 1.0})]
)
def test_top_p_leaves_the_fewest_that_have_the_share(top_p: float, left: dict[int, float]) -> None:
    assert frequencies(logits_of(0.2, 0.5, 0.3), Sampling(top_p=top_p)) == pytest.approx(left, abs=0.03)


def test_top_p_is_of_what_top_k_leaves() -> None:
    # Of 0.8, 0.5 is 0.625: enough for 0.6, which of everything it would not be.
    assert frequencies(logits_of(0.2, 0.5, 0.3), Sampling(top_k=2, top_p=0.6)) == {1: 1.0}


def test_a_flat_distribution_needs_more_than_the_first_candidates() -> None:
    size = 4 * CANDIDATES
    found = frequencies(torch.zeros(1, size), Sampling(top_p=0.75))
    assert len(found) > CANDIDATES
    # Equal tokens: which of them are left is open, how many is not.
    assert len(found) <= 0.75 * size


def test_one_row_that_needs_more_candidates_changes_no_other() -> None:
    flat = torch.zeros(1, 4 * CANDIDATES)
    peaked = torch.randn(1, 4 * CANDIDATES, generator=torch.Generator().manual_seed(1)) * 4
    sampling = Sampling(top_p=0.8)
    for seed in range(20):
        (alone,) = choose(peaked, [Draw(sampling, seed=seed)])
        _, shared = choose(torch.cat([flat, peaked]), [Draw(sampling, seed=0), Draw(sampling, seed=seed)])
        assert shared == alone


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 1.0, 1.7]), st.sampled_from([0.1, 0.7, 1.0]), st.sampled_from([0, 1, 5])),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**31),
)
def test_neighbours_make_no_difference(rows: list[tuple[float, float, int]], seed: int) -> None:
    samplings = [Sampling(temperature=temperature, top_p=top_p, top_k=top_k) for temperature, top_p, top_k in rows]
    logits = torch.randn(len(rows), 50, generator=torch.Generator().manual_seed(seed)) * 3
    together = choose(logits, [Draw(sampling, seed=seed + row) for row, sampling in enumerate(samplings)])
    for row, sampling in enumerate(samplings):
        (alone,) = choose(logits[row : row + 1], [Draw(sampling, seed=seed + row)])
        assert together[row] == alone


def test_answers_of_one_seed_differ_by_their_index() -> None:
    logits = torch.zeros(1, 1000)
    sequences = []
    for index in (0, 0, 1):
        draw = Draw(Sampling(), seed=3, index=index)
        sequences.append([choose(logits, [draw])[0].token for _ in range(5)])
    assert sequences[0] == sequences[1] != sequences[2]


def test_logits_that_are_no_numbers_have_no_token() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0], [2.0, float("-inf")]])
    for sampling in (Sampling(temperature=0.0), Sampling()):
        draws = [Draw(sampling, seed=seed) for seed in range(4)]
        assert [chosen.token is None for chosen in choose(logits, draws)] == [False, True, True, False]
    assert choose(logits[3:], [Draw(Sampling(), seed=1)])[0].token == 0


def test_log_probabilities_are_of_the_whole_distribution() -> None:
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(2))
    (chosen,) = choose(logits, [Draw(Sampling(temperature=0.2, top_k=3, logprobs=4), seed=1)])
    expected = logits[0].double().log_softmax(dim=0)
    assert chosen.token is not None
    assert chosen.logprob == pytest.approx(float(expected[chosen.token]))
    assert [token for token, _ in chosen.top] == expected.topk(4).indices.tolist()
    (bare,) = choose(logits, [Draw(Sampling(temperature=0.0, logprobs=0), seed=1)])
    assert bare.top == ()
    assert bare.logprob == pytest.approx(float(expected.max()))
