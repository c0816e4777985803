"""Grade one answer against the expected one.

`normalise` is applied to both sides of every text comparison, whatever the metric; JSON is parsed from the text as
it stands. BLEU is on the scale 0-1 like everything else.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, assert_never

import numpy as np

from ftray.errors import InputError, nearest
from ftray.evaluate.config import LIKELIHOOD_METRICS, METRICS, Metric

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

Normalisation = Literal["none", "whitespace", "casefold"]
Function = Callable[[str, str], Any]
JsonLeaf = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """The score of one answer, 0-1; `correct` only where the metric says right or wrong."""

    score: float
    correct: bool | None


def normalise(text: str, how: Normalisation) -> str:
    """Return the text as it is compared: untouched, with blanks collapsed, or also without case."""
    match how:
        case "none":
            return text
        case "whitespace":
            return " ".join(text.split())
        case "casefold":
            return " ".join(text.split()).casefold()
        case _:
            assert_never(how)


def check_instructions(metric: Metric, *, path: str) -> None:
    """Raise InputError for instructions that no metric checks."""
    if metric.instructions is not None and metric.metric != "instructions":
        raise InputError(
            f"`instructions` are checked by the metric 'instructions', and this one is '{metric.metric}'.",
            kind="metric_mismatch",
            given=metric.metric,
            allowed="instructions",
            hint="Set `metric: instructions`, or remove `instructions`.",
            path=f"{path}.instructions",
        )


def needs_generation(metric: Metric) -> bool:
    """Return whether the metric grades generated text, as opposed to the likelihood of given text."""
    return metric.metric not in LIKELIHOOD_METRICS


def check_metric(metric: Metric, *, path: str) -> None:
    """Raise InputError unless the metric exists and its settings fit each other."""
    if ":" in metric.metric:
        load_function(metric.metric)
    elif metric.metric not in METRICS:
        close = nearest(metric.metric, METRICS)
        raise InputError(
            f"There is no metric '{metric.metric}'.",
            kind="unknown_metric",
            given=metric.metric,
            allowed=[*METRICS, "module:function"],
            hint=f"Did you mean '{close}'?" if close else "Name one of these, or your own as module:function.",
            path=f"{path}.metric",
        )
    if metric.choices is not None and (metric.metric != "choice" or len(set(metric.choices)) < 2):
        raise InputError(
            "`choices` needs the metric 'choice' and at least two different answers.",
            kind="metric_mismatch",
            given={"metric": metric.metric, "choices": metric.choices},
            hint="Remove `choices`, or set `metric: choice` and list the answers to choose from.",
            path=f"{path}.choices",
        )
    check_instructions(metric, path=path)


@functools.cache
def load_function(name: str) -> Function:
    """Import a user's metric "module:function" once."""
    module_name, _, function_name = name.partition(":")
    hint = "Put the module beside the job file, or install it; PYTHONPATH is searched, too."
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        message = f"The metric '{name}' cannot be imported: {error}."
        raise InputError(message, kind="bad_metric", given=name, hint=hint) from error
    function: Function | None = vars(module).get(function_name)
    if not callable(function):
        raise InputError(
            f"The module '{module_name}' has no function '{function_name}'.",
            kind="bad_metric",
            given=name,
            allowed=sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_")),
            hint="Name a function that takes (prediction, expected) and returns a number from 0 to 1.",
        )
    _require_two_arguments(function, name)
    return function


def _require_two_arguments(function: Function, name: str) -> None:
    try:
        inspect.signature(function).bind("prediction", "expected")
    except TypeError as error:
        raise InputError(
            f"The metric '{name}' cannot be called with a prediction and an expected answer: {error}.",
            kind="bad_metric",
            given=name,
            allowed="a function taking (prediction, expected) and returning a number from 0 to 1",
            hint="Give it these two parameters.",
        ) from error
    except ValueError:
        # Built-in functions do not tell their parameters; calling them will.
        return


def grade(metric: Metric, prediction: str, expected: str) -> Graded:
    """Grade one generated (or chosen) answer.

    exact_match, choice, macro_f1: equal after normalisation. json_valid: the whole answer is a JSON object or array.
    token_f1: F1 over words and punctuation marks (Rajpurkar et al. 2016, arXiv:1606.05250, which also drops articles).
    json_fields: share of all fields, expected or given, whose values agree; nested fields count one by one.
    rouge_l: F-measure of the longest common subsequence (Lin 2004), words of any script, no stemming.
    bleu: sentence BLEU with effective order (Papineni et al. 2002; Post 2018, arXiv:1804.08771).
    """
    given, wanted = normalise(prediction, metric.normalise), normalise(expected, metric.normalise)
    match metric.metric:
        case "exact_match" | "choice" | "macro_f1":
            return _right_or_wrong(given == wanted)
        case "json_valid":
            return _right_or_wrong(json_leaves(prediction) is not None)
        case "token_f1":
            return Graded(score=_token_f1(given, wanted), correct=None)
        case "json_fields":
            return Graded(score=_json_fields(prediction, expected, metric.normalise), correct=None)
        case "rouge_l":
            return Graded(score=float(rouge_scorer().score(wanted, given)["rougeL"].fmeasure), correct=None)
        case "bleu":
            # exp(log(1)) rounds to a little more than 1.
            return Graded(score=min(1.0, sentence_bleu().sentence_score(given, [wanted]).score / 100), correct=None)
        case name if ":" in name:
            return _by_function(name, prediction, expected)
        case name:
            raise AssertionError(f"'{name}' does not grade text")


def _right_or_wrong(correct: bool) -> Graded:
    return Graded(score=float(correct), correct=correct)


def _token_f1(given: str, wanted: str) -> float:
    given_tokens, wanted_tokens = (Counter(re.findall(r"\w+|[^\w\s]", text)) for text in (given, wanted))
    if not given_tokens or not wanted_tokens:
        return float(given_tokens == wanted_tokens)
    return 2 * (given_tokens & wanted_tokens).total() / (given_tokens.total() + wanted_tokens.total())


def json_leaves(text: str) -> dict[str, JsonLeaf] | None:
    """Return the values of a JSON object or array by their path, or None when the text is anything else.

    A bare number or word is JSON to the letter, but no structured answer. NaN and Infinity are not JSON.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
        # A model that falls into "[[[[" can nest deeper than Python's stack.
        leaves = dict(_leaves(document, "$"))
    except (ValueError, RecursionError):
        return None
    return leaves if isinstance(document, dict | list) else None


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _leaves(value: Any, path: str) -> list[tuple[str, JsonLeaf]]:
    if isinstance(value, dict) and value:
        return [leaf for key, child in value.items() for leaf in _leaves(child, f"{path}.{json.dumps(key)}")]
    if isinstance(value, list) and value:
        return [leaf for index, child in enumerate(value) for leaf in _leaves(child, f"{path}[{index}]")]
    if isinstance(value, dict | list):
        return [(f"{path} is empty", json.dumps(value))]
    return [(path, value)]


def _json_fields(prediction: str, expected: str, how: Normalisation) -> float:
    wanted = json_leaves(expected)
    if wanted is None:
        raise AssertionError("build_task refuses expected answers that are not JSON")
    given = json_leaves(prediction)
    if given is None:
        return 0.0
    paths = given.keys() | wanted.keys()
    agree = sum(path in given and path in wanted and _same(given[path], wanted[path], how) for path in paths)
    return agree / len(paths)


def _same(first: JsonLeaf, second: JsonLeaf, how: Normalisation) -> bool:
    if isinstance(first, str) and isinstance(second, str):
        return normalise(first, how) == normalise(second, how)
    # Python holds True == 1, JSON does not; 1 and 1.0 are one JSON number.
    return isinstance(first, bool) == isinstance(second, bool) and first == second


def _by_function(name: str, prediction: str, expected: str) -> Graded:
    result = load_function(name)(prediction, expected)
    if isinstance(result, bool | np.bool_):
        return _right_or_wrong(bool(result))
    if not isinstance(result, Real) or not 0 <= float(result) <= 1:
        raise InputError(
            f"The metric '{name}' returned {result!r} ({type(result).__name__}) for one answer.",
            kind="bad_metric",
            given={"prediction": prediction, "expected": expected, "returned": repr(result)},
            allowed="a number from 0 to 1, or True or False",
            hint="Make the function return such a number for every pair of texts.",
        )
    return Graded(score=float(result), correct=None)


class _Words:
    """Split into lower-case words of any script; rouge-score's own tokenizer drops every letter outside a-z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


@functools.cache
def rouge_scorer() -> RougeScorer:
    """Return the ROUGE-L scorer, imported when first needed."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False, tokenizer=_Words())


@functools.cache
def sentence_bleu() -> BLEU:
    """Return the sentence scorer, imported when first needed."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)
