"""The checks of the gate in words for people: what each one looks at, as a short noun phrase for a table."""

from __future__ import annotations

NAMES = {
    "overlap_exact": "Evaluation rows that are also training rows",
    "overlap_normalised": "Evaluation rows that are also training rows, but for case and punctuation",
    "overlap_near": "Evaluation rows nearly equal to a training row",
    "overlap_ngram": "Evaluation rows that share long passages with training",
    "duplicates_exact": "Training rows that repeat an earlier row",
    "duplicates_near": "Training rows nearly equal to an earlier row",
    "conflicts": "Equal prompts with different answers",
    "split_leakage": "Groups that stand on both sides of the split",
    "format_drift": "Answers that leave their format",
    "diversity": "Variety of training prompts and answers",
    "label_balance": "Balance of the labels",
    "label_coverage": "Test answers that training never shows",
    "empty": "Rows with an empty answer",
    "truncation": "Rows too long for the model",
    "refusals": "Answers that refuse",
    "encoding": "Broken characters",
    "role_order": "Turns that are empty or out of order",
    "template_tokens": "Control tokens of chat templates in content",
    "outliers": "Rows of unusual length",
    "personal_data": "Personal data and secrets",
    "size": "Number of training rows",
    "label_noise": "Answers that are probably wrong",
    "relevance": "Likeness of training and evaluation prompts",
}
"""Every check there is."""
