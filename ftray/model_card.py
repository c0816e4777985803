"""The README of an exported adapter or model."""

from __future__ import annotations

from typing import Any

from ftray import __version__


def model_card(*, name: str, model: str, method: dict[str, Any], evaluation: dict[str, Any], origin: str) -> str:
    """Return the README of an exported adapter: what it is, how it was judged, how to load it.

    `origin`: the run or campaign it comes from.
    """
    task = evaluation["tasks"][0]
    verdict = evaluation["verdict"]
    reasons = "\n".join(f"- {reason}" for reason in verdict["reasons"])
    rows = "\n".join(
        f"| {one['name']} | {one['metric']} | {one['n']} | {_number(one['base'])} | {_number(one['tuned'])} |"
        for one in evaluation["tasks"]
    )
    kind = "LoRA adapter" if method["kind"] == "lora" else "fully fine-tuned model"
    load = (
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({model!r}), FOLDER)"
        if method["kind"] == "lora"
        else "model = AutoModelForCausalLM.from_pretrained(FOLDER)"
    )
    return f"""---
base_model: {model}
library_name: {"peft" if method["kind"] == "lora" else "transformers"}
---
# {name}

A {kind} of `{model}`, made by ftray {__version__} ({origin}).
Verdict: **{verdict["decision"]}** on the {evaluation["split"]} split ({task["n"]} rows).

{reasons}

| evaluation | metric | rows | base | tuned |
|---|---|---|---|---|
{rows}

```python
{load}
```
"""


def _number(estimate: dict[str, Any]) -> str:
    value = estimate["value"]
    return "-" if value is None else f"{value:.4g}"
