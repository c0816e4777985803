"""What of an answer is passed on when a replica dies in its middle and another one answers the same again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.serve.asking import EngineState, Piece, TokenLogprob
from ftray.serve.handles import Progress, total_state

WORDS = ("one ", "two ", "three ", "four ", "five")


def pieces_of(words: list[str], cuts: list[int]) -> list[Piece]:
    """Return an answer of these words, a token each, cut into pieces of these sizes."""
    found, place = [], 0
    for size in [*cuts, len(words)]:
        part = words[place : place + size]
        tokens = tuple(range(place, place + len(part)))
        logprobs = tuple(TokenLogprob(token_id=token, text=words[token], logprob=-1.0) for token in tokens)
        found.append(Piece(text="".join(part), token_ids=tokens, logprobs=logprobs))
        place += len(part)
    return [*found, Piece(finish_reason="stop", prompt_tokens=3, completion_tokens=len(words))]


@given(
    heard=st.integers(0, 6),
    first=st.lists(st.integers(0, 3), max_size=4),
    second=st.lists(st.integers(0, 3), max_size=4),
)
def test_two_replicas_together_give_the_whole_answer_once(heard: int, first: list[int], second: list[int]) -> None:
    progress = Progress()
    told = [new for piece in pieces_of(list(WORDS), first)[:heard] if (new := progress.rest(piece)) is not None]
    if told and told[-1].finish_reason is not None:
        return
    progress.start_again()
    told += [new for piece in pieces_of(list(WORDS), second) if (new := progress.rest(piece)) is not None]
    assert not progress.diverged
    assert "".join(piece.text for piece in told) == "".join(WORDS)
    assert [token for piece in told for token in piece.token_ids] == [0, 1, 2, 3, 4]
    assert [one.token_id for piece in told for one in piece.logprobs] == [0, 1, 2, 3, 4]
    assert told[-1].finish_reason == "stop"
    assert told[-1].completion_tokens == 5


@pytest.mark.parametrize(
    ("text", "tokens"), [("one too", (0, 9)), ("uno ", (0,))], ids=["another token", "another text"]
)
def test_an_answer_that_becomes_another_one_is_noticed(text: str, tokens: tuple[int, ...]) -> None:
    progress = Progress()
    progress.rest(Piece(text="one two ", token_ids=(0, 1)))
    progress.start_again()
    progress.rest(Piece(text=text, token_ids=tokens))
    assert progress.diverged


def test_engines_together_have_what_all_of_them_have() -> None:
    def state(digests: tuple[str, ...], running: int) -> EngineState:
        return EngineState(
            digests=digests, running=running, waiting=1, slots=4, steps=10, prompt_tokens=5, completion_tokens=2
        )

    total = total_state([state(("a", "b"), 1), state(("b", "c"), 2)])
    assert total.digests == ("b",)
    assert (total.running, total.waiting, total.slots, total.steps) == (3, 2, 8, 20)
    assert total_state([]).digests == ()
