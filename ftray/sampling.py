"""Texts sampled from the base model itself, to be rehearsed beside a task: `data.replay.sample_base`.

Plain sampling at temperature 1, so that the texts have the base's own distribution. A text is a function of (base,
precision, seed, its number): each next token is drawn by inverting its distribution at a number fixed beforehand. The
file of texts is made once, by the process that starts a run and in the precision of its machine; every worker reads it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ftray.artifacts import (
    RunDirectory,
    append_line,
    canonical_json_line,
    digest_of,
    read_json,
    read_lines,
    require_writable,
    try_lock,
    write_text,
)
from ftray.data.conversations import REPLAY, Example, Message
from ftray.data.replay import SampledTexts
from ftray.data.templates import load_template, special_tokens
from ftray.data.tokenization import Tokenization
from ftray.data.windows import FRAME_TOKENS
from ftray.errors import OUT_OF_MEMORY_HINT, InputError, Interrupted, RunError, is_out_of_memory
from ftray.evaluate.generate import generate
from ftray.job import LoadedJob
from ftray.model.base import identify, load_model, longest_example, own_device, own_precision
from ftray.prepare import SMOKE_SHARE
from ftray.train.checkpoint import find_checkpoints

LONGEST = 256
"""Tokens of a sampled text at most."""
BATCH = 32
"""Texts sampled together. Fixed, because rounding depends on it, and one draw in a million on rounding."""
EMPTY_SHARE = 0.5
"""A base of which more texts than this are empty has nothing to rehearse this way."""
WAIT_SECONDS = 3600
"""The longest wait for a text of another process that samples the same ones."""
VERSION = 1
"""Of what a text is a function of; part of its file's name."""
Precision = Literal["fp32", "bf16"]
OnProgress = Callable[[int, int], None]
"""Told how many texts there are, of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Everything that decides the texts, and where they are."""

    model: str
    precision: Precision
    start: tuple[int, ...]
    """The tokens that every text begins after."""
    is_answer: bool
    """Whether that is an empty user's turn rather than the begin of text."""
    stop_token_ids: tuple[int, ...]
    seed: int
    max_new_tokens: int
    texts: SampledTexts


def sampling_of(loaded: LoadedJob, tokenizer: Any, *, precision: Precision | None = None) -> Sampling | None:
    """Return what the job wants sampled; None when it wants nothing. Loads no weights.

    `precision`: what the process that starts the run samples in; None where that is this process.

    A text begins after the tokenizer's begin-of-text token, or where there is none as the answer to an empty turn of
    the user in the job's template. It ends at any control token. Raises InputError where the model has neither.
    """
    job, replay = loaded.job, loaded.job.data.replay
    if replay is None or replay.sample_base is None:
        return None
    is_answer = tokenizer.bos_token_id is None
    model_length = longest_example(job.model, tokenizer)
    longest = min(LONGEST, job.data.max_length or model_length, model_length)
    start = _empty_turn(loaded, tokenizer, longest) if is_answer else (int(tokenizer.bos_token_id),)
    count = -(-replay.sample_base // SMOKE_SHARE) if loaded.smoke else replay.sample_base
    # A text tokenized again may take a token or two more than were sampled.
    max_new_tokens = longest - len(start) - FRAME_TOKENS - 2
    if max_new_tokens < 1:
        raise InputError(
            f"texts of {longest} tokens leave no room to sample from the base",
            kind="bad_value",
            given=longest,
            allowed=f"at least {len(start) + FRAME_TOKENS + 3}",
            hint="Raise data.max_length, or give general rows as a file: data.replay.path.",
            path="data.max_length",
        )
    precision = precision or own_precision()
    what = {
        "version": VERSION,
        "precision": precision,
        "base": identify(job.model).digest,
        "start": list(start),
        "seed": job.seed,
        "texts": count,
        "max_new_tokens": max_new_tokens,
    }
    file = loaded.storage / "replay" / f"{digest_of(what)}.jsonl"
    return Sampling(
        model=job.model,
        precision=precision,
        start=start,
        is_answer=is_answer,
        stop_token_ids=tuple(sorted(special_tokens(tokenizer))),
        seed=job.seed,
        max_new_tokens=max_new_tokens,
        texts=SampledTexts(file=file, count=count, longest=longest),
    )


def _empty_turn(loaded: LoadedJob, tokenizer: Any, longest: int) -> tuple[int, ...]:
    data = loaded.job.data
    template = load_template(data.template, tokenizer, base=loaded.base)
    tokenization = Tokenization(tokenizer, template=template, loss_on=data.loss_on, max_length=longest)
    turns = (Message(role="user", content=""), Message(role="assistant", content=""))
    return tuple(tokenization.encode_prompt(Example(messages=turns, dataset="", row=0, fields={}, columns={})))


def sample_base(sampling: Sampling, tokenizer: Any, *, on_progress: OnProgress) -> None:
    """Make the file of texts, unless it is there; go on from what an interrupted process left.

    While another process makes it, its progress is told. Raises RunError for a base that says nothing, or when that
    process is at a standstill; Interrupted when it is stopped.
    """
    file = sampling.texts.file
    part = file.with_suffix(".part")
    require_writable(file.parent, hint="Choose another place with --storage DIR, or free some space.")
    try:
        with _alone(file.with_suffix(".lock"), waiting=lambda: _follow(part, sampling.texts.count, on_progress)):
            if not sampling.texts.is_there:
                _sample(sampling, tokenizer, part, on_progress)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "interrupted while texts were sampled from the base; those that are done are kept",
            kind="interrupted",
            hint="Run the same command again: it goes on from there.",
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            "out of memory while texts were sampled from the base", kind="oom", hint=OUT_OF_MEMORY_HINT
        ) from error


def require_same_texts(run: RunDirectory, *, run_id: str, digest: str | None) -> None:
    """Raise InputError when a run would go on with other replay rows than it began with: texts were sampled anew.

    `digest` is of the rows that are there now.
    """
    if not run.job.exists() or not find_checkpoints(run.checkpoints, run_id=run_id):
        return
    earlier = read_json(run.job)["data_digests"].get(REPLAY)
    if earlier != digest:
        raise InputError(
            "the texts sampled from the base are not those that this run began with",
            kind="changed_data",
            given=digest,
            allowed=earlier,
            hint="Restore the replay folder of the storage; or start a new run with --fresh.",
            path="data.replay",
        )


@contextlib.contextmanager
def _alone(lock: Path, *, waiting: Callable[[], int]) -> Iterator[None]:
    """Wait until no other process samples the same texts; `waiting` returns how many it has done.

    Raises RunError when it has done nothing for WAIT_SECONDS.
    """
    with lock.open("a", encoding="utf-8") as file:
        done, deadline = -1, time.monotonic() + WAIT_SECONDS
        while not try_lock(file):
            if (now_done := waiting()) != done:
                done, deadline = now_done, time.monotonic() + WAIT_SECONDS
            elif time.monotonic() > deadline:
                raise RunError(
                    f"another process samples the same texts, and has sampled none for {WAIT_SECONDS} s",
                    kind="node",
                    given=str(lock),
                    hint=f"End the process that holds {lock}, then run the command again: it goes on from what is "
                    "done.",
                )
            time.sleep(0.5)
        yield


def _follow(part: Path, count: int, on_progress: OnProgress) -> int:
    """Tell how far another process is, and return it."""
    done = min(count, sum(bool(line["text"]) for line in read_lines(part)))
    on_progress(done, count)
    return done


def _sample(sampling: Sampling, tokenizer: Any, part: Path, on_progress: OnProgress) -> None:
    count = sampling.texts.count
    lines = read_lines(part)
    # A batch that was torn is drawn again as a whole.
    lines = lines[: len(lines) // BATCH * BATCH]
    write_text(part, "".join(canonical_json_line(line) for line in lines))
    model: Any = None
    while len(said := [line for line in lines if line["text"]]) < count:
        if len(lines) >= 4 * BATCH and len(said) < EMPTY_SHARE * len(lines):
            raise _speechless(len(said), len(lines))
        on_progress(len(said), count)
        model = model or _load(sampling)
        batch = _sample_batch(sampling, model, tokenizer, range(len(lines), len(lines) + BATCH))
        for line in batch:
            append_line(part, line)
        lines += batch
    on_progress(count, count)
    write_text(sampling.texts.file, "".join(canonical_json_line(line) for line in said[:count]))
    part.unlink()
    del model
    if torch.cuda.is_available():
        # A worker on this GPU is about to need the room.
        torch.cuda.empty_cache()


def _load(sampling: Sampling) -> Any:
    model: Any = load_model(sampling.model, precision=sampling.precision)
    return model.to(own_device())


def _sample_batch(sampling: Sampling, model: Any, tokenizer: Any, numbers: range) -> list[dict[str, Any]]:
    draws = np.stack([_draws(sampling.seed, number, sampling.max_new_tokens) for number in numbers])  # [R, L]
    answers = generate(
        model,
        [sampling.start] * len(numbers),
        max_new_tokens=sampling.max_new_tokens,
        stop_token_ids=sampling.stop_token_ids,
        pad_token_id=int(tokenizer.pad_token_id),
        choose=lambda indices, lengths, logits: choose_at(draws, indices, lengths, logits),
    )
    lines = []
    for number, tokens in zip(numbers, answers, strict=True):
        is_ended = len(tokens) < sampling.max_new_tokens
        text = _text(tokenizer, tokens, is_ended=is_ended)
        lines.append({"number": number, "text": text, "is_ended": is_ended, "is_answer": sampling.is_answer})
    return lines


def _draws(seed: int, number: int, count: int) -> Any:
    """Return the numbers in [0, 1) that a text's tokens are drawn by."""
    return np.random.default_rng(int(digest_of(["sample", seed, number]), 16)).random(count)


def choose_at(draws: Any, indices: Sequence[int], lengths: Sequence[int], logits: Tensor) -> Tensor:
    """Return the tokens [R] where the summed probabilities of `logits` [R, V] pass each row's number of `draws`."""
    # A row that ended is asked on until it leaves its batch; what it says is not used.
    places = [min(length, draws.shape[1] - 1) for length in lengths]
    drawn = torch.tensor(draws[list(indices), places], device=logits.device)[:, None]  # [R, 1] float64
    summed = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    chosen = torch.searchsorted(summed, drawn * summed[:, -1:], right=True).squeeze(1)
    return chosen.clamp(max=logits.shape[-1] - 1)


def _text(tokenizer: Any, tokens: Sequence[int], *, is_ended: bool) -> str:
    text: str = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    if not is_ended:
        # The limit may have cut a character of several bytes.
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    return text if text.strip() else ""


def _speechless(said: int, asked: int) -> RunError:
    return RunError(
        f"the base has little to say by itself: {asked - said} of {asked} sampled texts are empty",
        kind="data",
        given={"sampled": asked, "empty": asked - said},
        allowed=f"a base that says something in at least {EMPTY_SHARE:.0%} of the texts",
        hint="Give general rows as a file: data.replay.path.",
    )
