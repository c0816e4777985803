"""The `method` section of a job: what is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ftray.config import Config


class MethodConfig(Config):
    """LoRA (Hu et al. 2021, arXiv:2106.09685) or full fine-tuning."""

    kind: Literal["lora", "full"] = "lora"
    """`lora` trains low-rank adapters on a frozen base; `full` trains every weight."""
    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank r of the update B·A."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha/r (alpha/sqrt(r) with rslora)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input, seeded per step."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the linear layers that get an adapter; `all-linear` is every one except the output head."""
    rslora: bool = False
    """Rank-stabilised scaling alpha/sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""
