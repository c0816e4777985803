"""Defaults of common kinds of task. A preset fills in what a job leaves open; explicit fields win.

Ranks, rates and epochs are the field's usual values (rank 4-8 for style and format, 16-64 for a domain, 64 for code);
what a sweep searches without a space of its own lies around them.
"""

from __future__ import annotations

from typing import Any, Literal

from ftray.space import Dimension, Range

PresetName = Literal["style", "domain", "support", "code", "classification"]

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "style": {"method": {"rank": 8, "alpha": 16}, "train": {"learning_rate": 1e-4, "epochs": 2}},
    "domain": {"method": {"rank": 32, "alpha": 64}, "train": {"learning_rate": 1e-4, "epochs": 2}},
    "support": {"method": {"rank": 8, "alpha": 16}, "train": {"learning_rate": 2e-4, "epochs": 2}},
    "code": {"method": {"rank": 64, "alpha": 128}, "train": {"learning_rate": 1e-4, "epochs": 3}},
    "classification": {
        "method": {"rank": 16, "alpha": 32},
        "train": {"learning_rate": 2e-4, "epochs": 3},
        "evaluate": {"task": {"metric": "exact_match", "max_new_tokens": 16}},
    },
}


def _lora_space(ranks: list[int], *, rate: float, epochs: list[float]) -> dict[str, Dimension]:
    """Rates from half of the usual one to four times it: too low a rate is the rarer fault of LoRA's."""
    return {
        "rank": [*ranks],
        "alpha_over_rank": [1.0, 2.0],
        "learning_rate": Range(loguniform=[rate / 2, rate * 4]),
        "epochs": [*epochs],
    }


LORA_SPACES: dict[PresetName | None, dict[str, Dimension]] = {
    None: _lora_space([8, 16, 32], rate=1e-4, epochs=[1.0, 2.0, 3.0]),
    "style": _lora_space([4, 8, 16], rate=1e-4, epochs=[1.0, 2.0, 3.0]),
    "domain": _lora_space([16, 32, 64], rate=1e-4, epochs=[1.0, 2.0, 3.0]),
    "support": _lora_space([4, 8, 16], rate=2e-4, epochs=[1.0, 2.0, 3.0]),
    "code": _lora_space([32, 64, 128], rate=1e-4, epochs=[2.0, 3.0]),
    "classification": _lora_space([8, 16, 32], rate=2e-4, epochs=[1.0, 2.0, 3.0]),
}
"""What a sweep searches with a preset, or without one, where the job gives no space."""
FULL_SPACE: dict[str, Dimension] = {
    "learning_rate": Range(loguniform=[1e-5, 5e-5]),
    "epochs": [1.0, 2.0, 3.0],
}
"""The same for full fine-tuning, which has neither rank nor alpha."""
