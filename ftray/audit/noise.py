"""Answers that are probably wrong: labels that a classifier of the other rows contradicts, or surprising free text.

Confident learning (Northcutt et al. 2021, arXiv:1911.00068): a label is confident for a row when its out-of-fold
probability reaches that label's mean self-confidence. Here half of it is enough, with a clear margin over the given
label, which finds more of the wrong labels (planted in real intents: 9 in 10, where the plain threshold finds 7).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftray.audit.finder import TRAIN
from ftray.audit.passages import asked, has_answer
from ftray.audit.report import Check, Pointer, Worst, found, skipped
from ftray.audit.sample import Sample, Sampled
from ftray.audit.tally import rows
from ftray.data.conversations import Example, normalise

SAMPLE_ROWS = 20_000
LABELS_LIMIT = 200
"""At most so many labels, of ten rows each on average, are judged by a classifier."""
ROWS_PER_LABEL = 10
LONGEST_LABEL = 80
FEWEST_OF_LABEL = 5
"""A label with fewer sampled rows is not judged: the folds would not know it."""
NOISE_LIMIT = 0.02
"""Share of suspects that passes: clean intent data show 1 %, the classifier's own mistakes."""
FOLDS = 5
THRESHOLD_SHARE = 0.5
"""Of a label's mean self-confidence that makes it confident: wrong labels lower the mean itself."""
MARGIN_SHARE = 0.5
"""Of it that the label must be ahead of the given one."""
FEATURES = 2**17
LEAST_ACCURACY = 0.5
"""Where prompts tell less about labels than this, a classifier is no judge of them."""
NUM_WORST = 10
KEPT_CHARACTERS = 2000
SURPRISE_LIMIT = 0.005
SURPRISE_FAR = 5.0
"""Robust standard deviations above the median."""
_TRAINING_STEPS = 80_000
_MAD_DEVIATIONS = 1.4826


@dataclass(frozen=True, slots=True)
class _Labelled:
    prompt: str
    label: str
    given: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A row whose label is doubted, by its place among the rows that were judged."""

    index: int
    suggested: int
    probability: float
    """Of the suggested label, out of fold."""
    margin: float
    """How much more probable the suggested label is than the given one."""


class LabelNoise:
    """Looks for wrong labels; for free answers `surprise` gives training rows' bits per byte under a model.

    `surprise` is by dataset and row; it may be set until `checks` is called.
    """

    def __init__(self, surprise: Mapping[tuple[str, int], float] | None = None) -> None:
        self.surprise = surprise
        self._counts: Counter[str] = Counter()
        self._sample = Sample(SAMPLE_ROWS, _labelled)
        self._are_labels = True

    def see(self, dataset: str, examples: Sequence[Example]) -> None:
        if dataset != TRAIN or not self._are_labels:
            return
        self._counts.update(_label(example) for example in examples if has_answer(example))
        longest = max(map(len, self._counts), default=0)
        self._are_labels = len(self._counts) <= LABELS_LIMIT and longest <= LONGEST_LABEL
        if self._are_labels:
            self._sample.see(examples)
        else:
            self._sample = Sample(SAMPLE_ROWS, _labelled)

    def checks(self) -> Sequence[Check]:
        if self._are_labels and self._counts.total() >= ROWS_PER_LABEL * max(2, len(self._counts)):
            return [self._judge_labels()]
        if self.surprise is not None:
            return [judge_surprise(self.surprise)]
        why = (
            f"Answers are free text, or too few for a classifier (labels need {ROWS_PER_LABEL} rows each): "
            "`ftray audit --model BASE` ranks free answers by how much they surprise the base."
        )
        return [skipped("label_noise", why, limit=NOISE_LIMIT)]

    def _judge_labels(self) -> Check:
        sampled = self._sample.rows
        enough = Counter(row.kept.label for row in sampled)
        judged = [row for row in sampled if enough[row.kept.label] >= FEWEST_OF_LABEL]
        labels = sorted({row.kept.label for row in judged})
        if len(labels) < 2 or len(judged) < ROWS_PER_LABEL * len(labels):
            why = f"Fewer than two labels have {FEWEST_OF_LABEL} training rows with a prompt: nothing to compare."
            return skipped("label_noise", why, rows=len(judged), limit=NOISE_LIMIT)
        numbers = {label: number for number, label in enumerate(labels)}
        given = np.array([numbers[row.kept.label] for row in judged])
        probabilities, is_known = out_of_fold([row.kept.prompt for row in judged], given, num_labels=len(labels))
        accuracy = float((probabilities.argmax(1) == given)[is_known].mean()) if is_known.any() else 0.0
        if accuracy < LEAST_ACCURACY:
            why = (
                f"A simple classifier predicts only {accuracy:.0%} of the labels from the prompts' words, too few to "
                "doubt one. If the labels should follow from the words, many of them are wrong: read 50 rows."
            )
            return skipped("label_noise", why, rows=len(judged), limit=NOISE_LIMIT)
        suspects = suspect_labels(probabilities, given, is_known)
        worst = Worst()
        for suspect in suspects:
            row = judged[suspect.index]
            worst.add(Pointer(dataset=row.dataset, row=row.row), suspect.margin)
        facts = {
            "method": "cross-fitted classifier of hashed words",
            "sampled_rows": len(judged),
            "training_rows": self._sample.num_seen,
            "accuracy": accuracy,
            "worst": _in_words(suspects[:NUM_WORST], judged, labels),
        }
        fix = self._fix(len(suspects), len(judged))
        return found("label_noise", worst, rows=len(judged), fix=fix, limit=NOISE_LIMIT, facts=facts)

    def _fix(self, count: int, judged: int) -> str:
        sampled = "" if self._sample.is_all else f" of a sample of {judged:,} of {self._sample.num_seen:,}"
        return (
            f"{count:,} training rows{sampled} look labelled wrong: a classifier trained on the other rows is sure of "
            "another label. Read them from the surest down, and correct or remove those that are wrong; some are only "
            "hard."
        )


def out_of_fold(
    prompts: Sequence[str], given: NDArray[np.int64], *, num_labels: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return each row's label probabilities [rows, labels] from a classifier that did not see its prompt.

    The second array says which rows can be judged: those whose own label the classifier knew.
    """
    # Slow to import, and needed for labels only.
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.linear_model import SGDClassifier

    words = HashingVectorizer(ngram_range=(1, 2), n_features=FEATURES, alternate_sign=False, norm=None,
                              token_pattern=r"(?u)\b\w+\b")  # fmt: skip
    features = TfidfTransformer(sublinear_tf=True).fit_transform(words.transform(prompts))
    # What stands in one row tells nothing about another; fewer columns are several times faster.
    features = features[:, np.bincount(features.indices, minlength=FEATURES) > 1]
    # By content: equal prompts are in one fold, so that no row is judged by its own copy.
    folds = np.array([zlib.crc32(normalise(prompt).encode()) % FOLDS for prompt in prompts])
    probabilities = np.zeros((len(prompts), num_labels))
    is_known = np.zeros(len(prompts), dtype=bool)
    epochs = int(np.clip(_TRAINING_STEPS // len(prompts), 5, 15))
    alpha = float(np.clip(0.1 / len(prompts), 5e-6, 1e-4))
    for fold in range(FOLDS):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(inside) or len(np.unique(given[outside])) < 2:
            continue
        classifier = SGDClassifier(
            loss="log_loss", alpha=alpha, max_iter=epochs, tol=None, average=True, random_state=0
        )
        classifier.fit(features[outside], given[outside])
        probabilities[np.ix_(inside, classifier.classes_)] = classifier.predict_proba(features[inside])
        is_known[inside] = np.isin(given[inside], classifier.classes_)
    return probabilities, is_known


def suspect_labels(
    probabilities: NDArray[np.float64], given: NDArray[np.int64], is_known: NDArray[np.bool_]
) -> list[Suspect]:
    """Return the rows whose given label another one contradicts, by margin, the clearest first."""
    everyone = np.arange(len(given))
    own = probabilities[everyone, given]
    thresholds = np.array(
        [
            own[is_known & (given == label)].mean() if (is_known & (given == label)).any() else np.inf
            for label in range(probabilities.shape[1])
        ]
    )
    others = np.where(probabilities >= THRESHOLD_SHARE * thresholds, probabilities, -np.inf)
    others[everyone, given] = -np.inf
    suggested = others.argmax(1)
    margins = others[everyone, suggested] - own
    chosen = np.flatnonzero(is_known & (margins > MARGIN_SHARE * thresholds[suggested]))
    return [
        Suspect(
            index=index,
            suggested=int(suggested[index]),
            probability=float(probabilities[index, suggested[index]]),
            margin=float(margins[index]),
        )
        for index in chosen[np.argsort(-margins[chosen], kind="stable")].tolist()
    ]


def _in_words(
    suspects: Sequence[Suspect], judged: Sequence[Sampled[_Labelled]], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return suspects for the report, labels spelt as they first stand."""
    spelling = {row.kept.label: row.kept.given for row in reversed(judged)}
    return [
        {
            "dataset": judged[suspect.index].dataset,
            "row": judged[suspect.index].row,
            "given": judged[suspect.index].kept.given,
            "suggested": spelling[labels[suspect.suggested]],
            "probability": round(suspect.probability, 4),
        }
        for suspect in suspects
    ]


def judge_surprise(surprise: Mapping[tuple[str, int], float]) -> Check:
    """Return the check of free answers from training rows' bits per byte of the answer given the prompt.

    `surprise` is by dataset and row: a row's number alone does not name it where there are several training files.
    """
    if len(surprise) < FEWEST_OF_LABEL * ROWS_PER_LABEL:
        why = f"Only {rows(len(surprise))} were scored by the model, too few to say which answers surprise it."
        return skipped("label_noise", why, rows=len(surprise), limit=SURPRISE_LIMIT)
    bits = np.array(list(surprise.values()))
    median = float(np.median(bits))
    spread = max(_MAD_DEVIATIONS * float(np.median(np.abs(bits - median))), 1e-9)
    far = (bits - median) / spread
    worst = Worst()
    ranked = sorted(zip(surprise, far.tolist(), strict=True), key=lambda pair: -pair[1])
    for (dataset, row), distance in ranked:
        if distance > SURPRISE_FAR:
            worst.add(Pointer(dataset=dataset, row=row), distance)
    verb = "has an answer that surprises" if worst.count == 1 else "have answers that surprise"
    fix = (
        f"{rows(worst.count)} of training {verb} the base far more than the others do (median {median:.2f} bits per "
        "byte). Read them from the top: they are often answers to another question, in another language, or broken."
    )
    facts: dict[str, Any] = {
        "method": "bits per byte of the answer under the base",
        "median_bits_per_byte": median,
        "worst": [
            {"dataset": dataset, "row": row, "bits_per_byte": round(surprise[dataset, row], 4)}
            for (dataset, row), _ in ranked[:NUM_WORST]
        ],
    }
    return found("label_noise", worst, rows=len(surprise), fix=fix, limit=SURPRISE_LIMIT, facts=facts)


def _label(example: Example) -> str:
    return normalise(example.answer_text[: 2 * LONGEST_LABEL])


def _labelled(example: Example) -> _Labelled | None:
    prompt = asked(example) if has_answer(example) else ""
    if not prompt.strip():
        return None
    return _Labelled(prompt=prompt[:KEPT_CHARACTERS], label=_label(example), given=example.answer_text)
