"""Attach LoRA to a base through PEFT, and read and write its weights under the names PEFT gives them on disk.

The base is frozen; trained weights are fp32 whatever the base's dtype.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ftray.errors import InputError
from ftray.model.config import MethodConfig

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_NAME = "default"
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def attach_lora(base: nn.Module, method: MethodConfig, *, base_name: str, seed: int) -> PeftModel:
    """Return `base` with a fresh adapter: A random (from `seed`), B zero, so that it still answers as the base."""
    from peft import LoraConfig, get_peft_model

    layers = [name for name, module in base.named_modules() if is_linear(module)]
    require_targets(layers, method.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=alpha_number(method.alpha),
        lora_dropout=method.dropout,
        use_rslora=method.rslora,
        target_modules=method.target_modules,
        fan_in_fan_out=any(is_transposed(module) for module in base.modules()),
    )
    from ftray.model.lora_linear import FoldedLoraLinear

    config._register_custom_module({nn.Linear: FoldedLoraLinear})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(seed)
        # PEFT reads an attribute that transformers has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model: Any = get_peft_model(base, config)
    model.peft_config[ADAPTER_NAME].base_model_name_or_path = base_name
    adapted = (module for module in model.modules() if isinstance(module, FoldedLoraLinear))
    for index, layer in enumerate(adapted):
        layer.index = index
    return model  # type: ignore[no-any-return]


def require_targets(layers: Sequence[str], target_modules: str | list[str]) -> None:
    """Raise InputError `unknown_target` for a target that names none of the base's linear layers."""
    if isinstance(target_modules, str):
        return
    unknown = [target for target in target_modules if not any(is_target(name, [target]) for name in layers)]
    if unknown:
        raise InputError(
            f"no layer of the model is named {unknown[0]!r}",
            kind="unknown_target",
            given=target_modules,
            allowed=["all-linear", *sorted({name.rsplit(".", 1)[-1] for name in layers})],
            hint="Use the last part of a linear layer's name, or all-linear.",
            path="method.target_modules",
        )


def is_target(name: str, target_modules: str | list[str]) -> bool:
    """Return whether a linear layer is named by a job's `target_modules`; the output head is another question."""
    if isinstance(target_modules, str):
        return True
    return any(name == target or name.endswith(f".{target}") for target in target_modules)


def alpha_number(alpha: float) -> int:
    """Return alpha as adapter_config.json spells it: whole numbers stay whole."""
    # PEFT's type says int, its arithmetic takes floats.
    return int(alpha) if float(alpha).is_integer() else alpha  # type: ignore[return-value]


def is_linear(module: nn.Module) -> bool:
    """Return whether an adapter can be put on this module."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def computes_plainly(module: nn.Module) -> bool:
    """Return whether a linear layer's forward pass is its matrix product and nothing else."""
    from transformers.pytorch_utils import Conv1D

    return type(module).forward in (nn.Linear.forward, Conv1D.forward)


def is_transposed(module: nn.Module) -> bool:
    """Return whether this is GPT-2's linear layer, whose weight is stored as [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def train_adapter_only(model: nn.Module) -> None:
    """Put a model with adapters into training mode, its base's own dropout left off.

    A base's dropout would make a run depend on its worker and on who else is in its batch; LoRA has dropout of its own.
    Layers that recompute their activations do so in training mode only: their parts stay in evaluation mode, and what
    they drop by themselves is set to 0.
    """
    model.eval()
    for name, module in model.named_modules():
        if ".lora_dropout" in name:
            module.training = True
        elif getattr(module, "gradient_checkpointing", False) is True:
            module.training = True
            for key, value in vars(module).items():
                if "drop" in key and isinstance(value, float):
                    setattr(module, key, 0.0)


def disk_name(parameter_name: str) -> str:
    """Return the name a trained parameter has in `adapter_model.safetensors`."""
    return parameter_name.replace(f".{ADAPTER_NAME}.", ".")


def save_adapter_config(model: PeftModel, folder: Path) -> None:
    """Write adapter_config.json as PEFT reads it, in inference mode."""
    config = model.peft_config[ADAPTER_NAME]
    was_inference = config.inference_mode
    config.inference_mode = True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.inference_mode = was_inference


@contextlib.contextmanager
def base_only(model: nn.Module) -> Iterator[None]:
    """Answer as the untouched base inside this block. A model without an adapter is an assertion."""
    from peft import PeftModel

    assert isinstance(model, PeftModel), "only a model with an adapter holds its base untouched"
    with model.disable_adapter():
        yield


def load_adapter_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy weights by disk name into a model with an adapter; a missing or extra name is an error."""
    parameters = {disk_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if parameters.keys() != tensors.keys():
        different = sorted(parameters.keys() ^ tensors.keys())
        raise InputError(
            f"the adapter's weights do not fit the model: {len(different)} names differ, first {different[0]}",
            kind="adapter_mismatch",
            given=sorted(tensors)[:3],
            allowed=sorted(parameters)[:3],
            hint="The adapter was trained with other target modules or another base.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
