"""Pieces of an answer joined are what the tokenizer makes of it at once; they end between characters, before stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_world import TEXTS, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ftray.model.base import load_tokenizer
from ftray.serve.asking import Sampling
from ftray.serve.engine.detokenise import REPLACEMENT, Detokeniser, StopTexts, Vocabulary
from ftray.serve.engine.rows import Row, Speech
from ftray.serve.engine.sampler import Chosen, Draw

ANY_TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n'.,ab🙂é日")), min_size=0, max_size=30)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Return a tokenizer as Llama 2 has it: blanks are part of words, unknown characters are bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = sorted({letter for text in TEXTS for letter in text if letter.isascii() and letter not in " \n"})
    words = ["▁a", "▁the", "the", "▁▁", "is", "▁is"]
    vocabulary = {
        piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *letters, *words, "▁t", "▁i", "th"]))
    }
    merges = [("▁", "a"), ("▁", "t"), ("▁", "i"), ("t", "h"), ("th", "e"), ("▁t", "he"), ("▁", "▁"), ("i", "s")]
    merges = [pair for pair in merges if "".join(pair) in vocabulary and all(part in vocabulary for part in pair)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def metaspace() -> PreTrainedTokenizerFast:
    """Return a unigram tokenizer whose decoder takes the first blank away, as T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    """Return a tokenizer as BERT has it, whose decoder joins and cleans."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", unk_token="[UNK]")


MAKERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": make_tokenizer,
    "sentencepiece": sentencepiece_like,
    "metaspace": metaspace,
    "word-piece": word_piece,
}
VOCABULARIES = {name: Vocabulary(make()) for name, make in MAKERS.items()}


def pieces_of(vocabulary: Vocabulary, tokens: list[int]) -> list[str]:
    detokeniser = Detokeniser(vocabulary)
    return [*(detokeniser.add(token) for token in tokens), detokeniser.finish()]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_tokens_joined_are_the_whole(name: str, data: st.DataObject) -> None:
    vocabulary = VOCABULARIES[name]
    tokens = data.draw(st.lists(st.integers(0, len(vocabulary.tokenizer) - 1), max_size=24))
    assert "".join(pieces_of(vocabulary, tokens)) == vocabulary.decode(tokens)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=ANY_TEXT)
def test_any_text_comes_in_whole_characters(name: str, text: str) -> None:
    vocabulary = VOCABULARIES[name]
    tokens = vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(vocabulary, tokens)
    assert "".join(pieces) == vocabulary.decode(tokens)
    if REPLACEMENT not in vocabulary.decode(tokens):
        assert not any(REPLACEMENT in piece for piece in pieces)


def test_most_of_an_answer_comes_as_it_grows() -> None:
    vocabulary = VOCABULARIES["byte-level"]
    tokens = vocabulary.tokenizer(TEXTS[1])["input_ids"]
    pieces = pieces_of(vocabulary, tokens)
    assert pieces[-1] == ""
    said = 0
    for index, piece in enumerate(pieces[:-1]):
        said += len(piece)
        # At most the bytes of one character are held back.
        assert len(vocabulary.decode(tokens[: index + 1]).rstrip(REPLACEMENT)) - said <= 1


def test_a_character_of_several_byte_tokens_waits_for_its_run_to_end() -> None:
    vocabulary = VOCABULARIES["sentencepiece"]
    tokens = vocabulary.tokenizer("a🙂 is", add_special_tokens=False)["input_ids"]
    pieces = pieces_of(vocabulary, tokens)
    assert any("🙂" in piece for piece in pieces[:-1])
    assert "".join(pieces) == "a🙂 is"


def test_a_cut_character_is_shown_as_the_tokenizer_shows_it() -> None:
    vocabulary = VOCABULARIES["byte-level"]
    tokens = vocabulary.tokenizer("🙂")["input_ids"]
    assert len(tokens) > 1
    assert pieces_of(vocabulary, tokens[:1]) == ["", vocabulary.decode(tokens[:1])]


def test_the_real_tokenizer(shared: Path) -> None:
    vocabulary = Vocabulary(load_tokenizer(str(shared / "models" / "stories3M")))
    for text in [*TEXTS, " leading", "  two", "\n\n", "🙂🙂", "the end "]:
        tokens = vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = pieces_of(vocabulary, tokens)
        assert "".join(pieces) == vocabulary.decode(tokens) == text
    assert vocabulary.text_of(vocabulary.tokenizer("the", add_special_tokens=False)["input_ids"][0]) == " the"


def test_control_tokens_say_nothing_but_have_names() -> None:
    vocabulary = VOCABULARIES["byte-level"]
    end = vocabulary.tokenizer.eos_token_id
    tokens = [*vocabulary.tokenizer("ab")["input_ids"], end, *vocabulary.tokenizer("cd")["input_ids"]]
    assert "".join(pieces_of(vocabulary, tokens)) == "abcd"
    assert vocabulary.text_of(end) == "<end>"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_a_stop_text_ends_at_its_first_appearance(pieces: list[str], stops: list[str]) -> None:
    seeker, said = StopTexts(stops), ""
    so_far = ""
    ended = False
    for piece in pieces:
        so_far += piece
        new, ended = seeker.add(piece)
        said += new
        found = [so_far.find(stop) for stop in stops if stop in so_far]
        assert ended == bool(found)
        if ended:
            assert said == so_far[: min(found)]
            break
        # What is held back may become a stop text, and what is said cannot.
        held = so_far[len(said) :]
        assert so_far.startswith(said)
        assert not held or any(stop.startswith(held) for stop in stops)
    if not ended:
        assert said + seeker.finish() == so_far


def row_of(vocabulary: Vocabulary, stop: tuple[str, ...] = (), *, limit: int = 99, stops: tuple[int, ...] = ()) -> Row:
    sampling = Sampling(stop=stop)
    return Row(
        prompt=[1], limit=limit, stops=frozenset(stops), draw=Draw(sampling, seed=0), speech=Speech(vocabulary, stop)
    )


def grow(row: Row, tokens: list[int]) -> list[Any]:
    pieces = []
    for token in tokens:
        piece = row.take(Chosen(token=token))
        if piece is not None:
            pieces.append(piece)
        if row.ended:
            break
    return pieces


def test_a_stop_text_across_tokens_ends_the_answer_before_it() -> None:
    vocabulary = VOCABULARIES["byte-level"]
    tokens = vocabulary.tokenizer("one, two, three, four")["input_ids"]
    row = row_of(vocabulary, (", thr", "zzz"))
    pieces = grow(row, tokens)
    assert row.ended
    assert "".join(piece.text for piece in pieces) == "one, two"
    assert pieces[-1].finish_reason == "stop"
    assert [token for piece in pieces for token in piece.token_ids] == row.answer
    assert pieces[-1].completion_tokens == len(row.answer) < len(tokens)


def test_what_was_held_back_comes_at_the_end() -> None:
    vocabulary = VOCABULARIES["byte-level"]
    tokens = vocabulary.tokenizer("one, two")["input_ids"]
    row = row_of(vocabulary, ("two, three",), limit=len(tokens))
    pieces = grow(row, tokens)
    assert "".join(piece.text for piece in pieces) == "one, two"
    assert pieces[-1].finish_reason == "length"


def test_a_stop_token_is_no_part_of_the_answer() -> None:
    vocabulary = VOCABULARIES["byte-level"]
    end = vocabulary.tokenizer.eos_token_id
    tokens = vocabulary.tokenizer("ab")["input_ids"]
    row = row_of(vocabulary, stops=(end,))
    pieces = grow(row, [*tokens, end, *tokens])
    assert "".join(piece.text for piece in pieces) == "ab"
    assert (pieces[-1].finish_reason, pieces[-1].completion_tokens) == ("stop", len(tokens))


def test_an_answer_that_nobody_watches_comes_in_one_piece() -> None:
    vocabulary = VOCABULARIES["byte-level"]
    tokens = vocabulary.tokenizer("one two three")["input_ids"]
    row = row_of(vocabulary, limit=len(tokens))
    row.is_streamed = False
    (piece,) = grow(row, tokens)
    assert piece.text == "one two three"
    assert list(piece.token_ids) == tokens
