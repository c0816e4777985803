"""Defaults of common kinds of task. A preset fills in what a job leaves open; explicit fields win.

Ranks, rates and epochs are the field's usual values (rank 4-8 for style and format, 16-64 for a domain, 64 for code).
"""

from __future__ import annotations

from typing import Any, Literal

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
