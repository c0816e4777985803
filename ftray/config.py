"""The base of every configuration model: frozen, strict, closed. Each component defines its own beside its code."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Reject unknown keys and wrong types; never change after validation; document fields under the field."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
