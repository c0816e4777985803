"""How far training prompts are from the prompts they are judged by, in hashed TF-IDF cosine.

What is far differs between datasets, so each is its own measure: an evaluation row is far when it is less similar to
training than 95 % of the training rows are to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftray.audit.finder import TEST, TRAIN, VALIDATION
from ftray.audit.passages import asked
from ftray.audit.report import Check, Pointer, Worst, skipped
from ftray.audit.sample import Sample
from ftray.data.conversations import Example

TRAIN_ROWS = 20_000
EVALUATION_ROWS = 2000
BASELINE_ROWS = 2000
FAR_PERCENTILE = 5
NEVER_FAR = 0.5
"""A prompt so similar to a training prompt is not far, even where training prompts are all copies of a template."""
RELEVANCE_LIMIT = 0.3
"""Share of far evaluation rows that passes; rows of one source have 0.05 to 0.1, of another task 0.5 and more."""
FEWEST_ROWS = 20
LEAST_LIKENESS = 0.05
"""Where training prompts are less alike than this in the median, common words do not show what belongs together."""
FEATURES = 2**18
KEPT_CHARACTERS = 2000
_BLOCK = 128  # rows whose similarities to all training rows are held at once: 20 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """One evaluation set against training."""

    dataset: str
    rows: tuple[int, ...]
    nearest: NDArray[np.float64]
    """Similarity of each evaluation row to its nearest training row."""
    back: NDArray[np.float64]
    """Similarity of each training row to its nearest evaluation row."""
    own: NDArray[np.float64]
    """Similarity of each evaluation row to its nearest other evaluation row."""


class Relevance:
    """Compares the prompts of validation and test with those of training."""

    def __init__(self) -> None:
        self._samples = {TRAIN: Sample(TRAIN_ROWS, _prompt)}
        self._samples |= {name: Sample(EVALUATION_ROWS, _prompt) for name in (VALIDATION, TEST)}

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        if dataset in self._samples:
            self._samples[dataset].see(examples)

    def checks(self) -> Sequence[Check]:
        train = self._samples[TRAIN].rows
        sets = {name: sample for name, sample in self._samples.items() if name != TRAIN}
        sets = {name: sample for name, sample in sets.items() if len(sample.rows) >= FEWEST_ROWS}
        if len(train) < FEWEST_ROWS or not sets:
            why = f"There are not {FEWEST_ROWS} prompts of training and of an evaluation set to compare."
            return [skipped("relevance", why, limit=RELEVANCE_LIMIT)]
        texts = {TRAIN: [row.kept for row in train]}
        texts |= {name: [row.kept for row in sample.rows] for name, sample in sets.items()}
        vectors = _vectors(texts)
        num_baseline = min(BASELINE_ROWS, len(train))
        among = _nearest(vectors[TRAIN][:num_baseline], vectors[TRAIN], same=True).forth
        if np.median(among) < LEAST_LIKENESS:
            why = "Training prompts have hardly a word in common with each other, so words cannot say what is far."
            return [skipped("relevance", why, limit=RELEVANCE_LIMIT)]
        far = min(NEVER_FAR, float(np.percentile(among, FAR_PERCENTILE)))
        compared = []
        for name, sample in sets.items():
            both = _nearest(vectors[name], vectors[TRAIN])
            own = _nearest(vectors[name], vectors[name], same=True).forth
            numbers = tuple(row.row for row in sample.rows)
            compared.append(_Comparison(dataset=name, rows=numbers, nearest=both.forth, back=both.back, own=own))
        return [self._check(compared, far=far, among=among)]

    def _check(self, compared: Sequence[_Comparison], *, far: float, among: NDArray[np.float64]) -> Check:
        """Return the check of the evaluation set that is farthest from training."""
        worst_set = max(compared, key=lambda one: float((one.nearest < far).mean()))
        worst = Worst()
        for row, similarity in zip(worst_set.rows, worst_set.nearest.tolist(), strict=True):
            if similarity < far:
                worst.add(Pointer(dataset=worst_set.dataset, row=row, similarity=round(similarity, 4)), -similarity)
        num_rows = len(worst_set.rows)
        sampled = "" if self._samples[worst_set.dataset].is_all and self._samples[TRAIN].is_all else " (of a sample)"
        # What is not near any evaluation row is wasted only against all sets together.
        back = np.max([one.back for one in compared], axis=0)
        limits = [min(NEVER_FAR, float(np.percentile(one.own, FAR_PERCENTILE))) for one in compared]
        wasted = float((back < min(limits)).mean())
        facts: dict[str, Any] = {
            "far_below": far,
            "median_similarity": {TRAIN: float(np.median(among))}
            | {one.dataset: float(np.median(one.nearest)) for one in compared},
            "far_share": {one.dataset: float((one.nearest < far).mean()) for one in compared},
            "train_far_share": wasted,
            "sampled_rows": {name: len(sample.rows) for name, sample in self._samples.items()},
        }
        is_far = worst.count > RELEVANCE_LIMIT * num_rows
        fix = (
            f"{worst.count} of {num_rows} {worst_set.dataset} prompts{sampled} are unlike every training prompt: what "
            "is measured there is not what is trained. Add training rows like them, or take the evaluation rows from "
            f"where the model will be used. {wasted:.0%} of the training prompts are far from every evaluation prompt."
        )
        return Check(
            name="relevance",
            status="warn" if is_far else "pass",
            count=worst.count,
            rows=num_rows,
            limit=RELEVANCE_LIMIT,
            examples=worst.pointers if is_far else (),
            fix=fix if is_far else "",
            facts=facts,
        )


@dataclass(frozen=True, slots=True)
class _Nearest:
    forth: NDArray[np.float64]
    back: NDArray[np.float64]


def _nearest(queries: Any, rows: Any, *, same: bool = False) -> _Nearest:
    """Return each side's largest similarity to the other; with `same` queries are the first rows, and skip themselves.

    Sparse [queries, features] and [rows, features], rows of length 1.
    """
    forth, back = np.zeros(queries.shape[0]), np.zeros(rows.shape[0])
    turned = rows.T.tocsr()
    for start in range(0, queries.shape[0], _BLOCK):
        block = (queries[start : start + _BLOCK] @ turned).toarray()
        if same:
            each = np.arange(block.shape[0])
            block[each, start + each] = 0.0
        forth[start : start + _BLOCK] = block.max(1)
        np.maximum(back, block.max(0), out=back)
    return _Nearest(forth=forth, back=back)


def _vectors(texts: dict[str, list[str]]) -> dict[str, Any]:
    """Return the TF-IDF vectors of each dataset's texts; words are weighed by how rare they are in all of them."""
    # Slow to import.
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    words = HashingVectorizer(ngram_range=(1, 2), n_features=FEATURES, alternate_sign=False, norm=None,
                              dtype=np.float32, token_pattern=r"(?u)\b\w+\b")  # fmt: skip
    counts = {name: words.transform(some) for name, some in texts.items()}
    weights = TfidfTransformer(sublinear_tf=True).fit(counts[TRAIN])
    return {name: weights.transform(some) for name, some in counts.items()}


def _prompt(example: Example) -> str | None:
    prompt = asked(example) if example.text is None else ""
    return prompt[:KEPT_CHARACTERS] if prompt.strip() else None
