"""Slots of the bank from and to PEFT: ordinary folders, in and out without PEFT itself, and a model in memory.

Written folders open in `PeftModel.from_pretrained`. Read folders may come from anywhere: what the bank cannot compute
exactly is refused, never approximated.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ftray.artifacts import write_text
from ftray.errors import InputError
from ftray.model.bank import Adapter, Bank, Factors
from ftray.model.lora import ADAPTER_NAME, CONFIG_FILE, WEIGHTS_FILE, alpha_number, disk_name

if TYPE_CHECKING:
    from peft import PeftModel

PREFIX = "base_model.model."
"""What PEFT puts before the name of a layer."""
TENSOR = re.compile(rf"{re.escape(PREFIX)}(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
"""Those that leave the base's weights as they are; the others train a changed base."""
UNSUPPORTED = {
    "use_dora": "DoRA scales every update by a norm of the merged weight",
    "modules_to_save": "it trained whole modules beside the adapter",
    "lora_bias": "it trained biases of the adapter",
    "trainable_token_indices": "it trained embeddings",
    "target_parameters": "it adapts bare parameters (experts), not linear layers",
    "layer_replication": "its base has replicated layers",
    "use_qalora": "QALoRA pools the input of quantised layers",
    "alora_invocation_tokens": "an activated LoRA is on for a part of the text only",
    "arrow_config": "it routes between several adapters",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA changes the base's weights",
    "monteclora_config": "it samples its factors",
}
"""Settings of PEFT's LoRA that the bank does not compute, and what they are."""


@contextmanager
def adapter_in_bank(model: PeftModel) -> Iterator[Bank | None]:
    """Put a model's adapter into slot 1 of a bank over the model's own base; inside this block the bank answers.

    What the adapter learns meanwhile is not seen. Gives None for an adapter or a base that a bank cannot hold:
    PEFT then answers for base and tuned in turn, as exactly and not as fast.
    """
    try:
        bank = bank_of(model)
    except InputError:
        yield None
        return
    try:
        yield bank
    finally:
        bank.detach()


def bank_of(model: PeftModel) -> Bank:
    """Return a bank over the model's base with its adapter in slot 1. Raises InputError for what it cannot hold."""
    config = model.peft_config[ADAPTER_NAME].to_dict()
    reason = unsupported(config)
    if reason is not None:
        raise _refusal("of this model", *reason)
    weights = {disk_name(name): weight.detach() for name, weight in model.named_parameters() if ".lora_" in name}
    adapter, factors = _adapter_of(config, _pairs(weights, "of this model"))
    base = model.get_base_model()
    rank = max(adapter.rank_of(layer) for layer in adapter.layers)
    bank = Bank(base, slots=1, rank=rank, target_modules=list(adapter.layers), freeze=False)
    try:
        bank.put(1, adapter, factors)
    except InputError:
        bank.detach()
        raise
    return bank


def read_adapter(folder: Path) -> tuple[Adapter, Factors]:
    """Read a PEFT LoRA folder. Raises InputError for what is not there, damaged, or not plain LoRA."""
    config = _read_config(folder)
    reason = unsupported(config)
    if reason is not None:
        raise _refusal(folder.name, *reason)
    try:
        tensors = load_file(str(folder / WEIGHTS_FILE))
    except (FileNotFoundError, SafetensorError) as error:
        raise _damaged(folder / WEIGHTS_FILE, f"cannot be read: {error}") from error
    pairs = _pairs(tensors, folder.name)
    lonely = [layer for layer, pair in pairs.items() if len(pair) != 2]
    if lonely:
        raise _damaged(folder / WEIGHTS_FILE, f"has one factor only of {lonely[0]}")
    if not pairs:
        raise _damaged(folder / WEIGHTS_FILE, "has no weights")
    return _adapter_of(config, pairs)


def _pairs(tensors: Mapping[str, Tensor], name: str) -> dict[str, dict[str, Tensor]]:
    """Return the factors by layer and letter."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = TENSOR.fullmatch(key)
        if match is None:
            raise _refusal(name, key, "these weights are no factor of a linear layer's LoRA")
        pairs.setdefault(match["layer"], {})[match["factor"]] = tensor
    return pairs


def _adapter_of(config: Mapping[str, Any], pairs: Mapping[str, Mapping[str, Tensor]]) -> tuple[Adapter, Factors]:
    factors = {layer: (pair["A"], pair["B"]) for layer, pair in pairs.items()}
    ranks = {layer: int(a.shape[0]) for layer, (a, _) in factors.items()}
    alphas = {layer: _pattern(config, "alpha_pattern", layer, config["lora_alpha"]) for layer in factors}
    adapter = Adapter(
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        rslora=bool(config.get("use_rslora", False)),
        dropout=float(config.get("lora_dropout", 0.0)),
        layers=tuple(factors),
        alphas={layer: alpha for layer, alpha in alphas.items() if alpha != config["lora_alpha"]},
        ranks={layer: rank for layer, rank in ranks.items() if rank != config["r"]},
    )
    return adapter, factors


def load_slot(bank: Bank, slot: int, folder: Path) -> None:
    """Put a PEFT folder into a slot."""
    adapter, factors = read_adapter(folder)
    bank.put(slot, adapter, factors)


def save_slot(bank: Bank, slot: int, folder: Path, *, base_name: str) -> None:
    """Write a slot as a PEFT folder; `base_name` is what the adapter says it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, (a, b) in bank.take(slot).items():
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = a.cpu()
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = b.cpu()
    unfinished = folder / f".{WEIGHTS_FILE}.tmp"
    save_file(tensors, str(unfinished), metadata={"format": "pt"})
    os.replace(unfinished, folder / WEIGHTS_FILE)
    config = adapter_config(bank, bank.adapters[slot], base_name=base_name)
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")


def adapter_config(bank: Bank, adapter: Adapter, *, base_name: str) -> dict[str, Any]:
    """Return adapter_config.json as PEFT reads it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": alpha_number(adapter.alpha),
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": any(layer.transposed for layer in bank.layers.values()),
        "target_modules": _target_modules(bank.linears, adapter.layers),
        # Whole names: a pattern that names a layer's last part would hit its namesakes.
        "rank_pattern": {f"^{re.escape(layer)}": rank for layer, rank in adapter.ranks.items()},
        "alpha_pattern": {f"^{re.escape(layer)}": alpha for layer, alpha in adapter.alphas.items()},
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _target_modules(known: Iterable[str], adapted: Iterable[str]) -> list[str]:
    """Return last parts of layer names where they say which layers are adapted, else whole names."""
    last = {layer.rsplit(".", 1)[-1] for layer in adapted}
    named = {layer for layer in known if layer.rsplit(".", 1)[-1] in last}
    return sorted(last) if named == set(adapted) else list(adapted)


def _pattern(config: Mapping[str, Any], name: str, layer: str, default: float) -> float:
    """Return a layer's value by PEFT's patterns: the first whose expression ends the layer's name."""
    for pattern, value in (config.get(name) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return float(value)
    return default


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, f"cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise _damaged(file, "is no JSON object")
    missing = sorted({"peft_type", "r", "lora_alpha"} - set(config))
    if config.get("peft_type", "LORA") == "LORA" and missing:
        raise _damaged(file, f"lacks {missing[0]}")
    return config


def unsupported(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the setting of an adapter_config.json that a bank cannot compute, and why; None for plain LoRA."""
    kind = str(config["peft_type"]).removeprefix("PeftType.")
    if kind != "LORA":
        return f"peft_type: {kind}", "it is no LoRA adapter"
    for setting, what in UNSUPPORTED.items():
        if config.get(setting):
            return setting, what
    if config.get("bias", "none") != "none":
        return f"bias: {config['bias']}", "it trained biases of the base"
    how = config.get("init_lora_weights", True)
    if how not in PLAIN_INITIALISATIONS:
        return f"init_lora_weights: {how}", "it was trained on a base with changed weights"
    return None


def _damaged(file: Path, what: str) -> InputError:
    return InputError(
        f"{file} {what}",
        kind="bad_adapter",
        given=str(file.parent),
        allowed=f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, with lora_A and lora_B of every adapted layer",
        hint="Name the folder of an adapter that PEFT or ftray has written, or copy it again.",
        file=str(file),
    )


def _refusal(name: str, given: str, why: str) -> InputError:
    return InputError(
        f"the adapter {name} cannot share a base with others: {why} ({given})",
        kind="unsupported_adapter",
        given=given,
        allowed="plain LoRA on linear layers, with or without rsLoRA",
        hint="Merge it into its base with PEFT's merge_and_unload and use the result as a model of its own.",
    )
