"""Load a base model and its tokenizer: local folders or the Hugging Face hub, safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftray.artifacts import digest_files
from ftray.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
IDENTITY_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What a model is: a name for people and a digest (local content) or revision (hub) for machines."""

    name: str
    digest: str
    local: bool


@lru_cache(maxsize=8)
def identify(model: str) -> ModelIdentity:
    """Return the identity of a local folder (content digest) or a hub model (its revision).

    Raises InputError `missing_model` when there is neither.
    """
    folder = Path(model)
    if folder.is_dir():
        _require_model_files(folder)
        files = (path for path in folder.iterdir() if path.is_file() and path.suffix in IDENTITY_SUFFIXES)
        return ModelIdentity(name=folder.name, digest=digest_files(files), local=True)
    if folder.is_absolute() or model.startswith(".") or model.count("/") > 1:
        raise _missing(model, "there is no such folder")
    return ModelIdentity(name=model, digest=_hub_revision(model), local=False)


def _require_model_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise _missing(str(folder), "the folder has no config.json")
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")):
        raise InputError(
            f"{folder} has only pickled weights (.bin)",
            kind="unsafe_model",
            given=str(folder),
            allowed="*.safetensors",
            hint="Convert it once with transformers: model.save_pretrained(FOLDER, safe_serialization=True).",
            path="model",
        )
    raise _missing(str(folder), "the folder has no *.safetensors")


def _missing(model: str, why: str) -> InputError:
    return InputError(
        f"the model {model!r} cannot be found: {why}",
        kind="missing_model",
        given=model,
        allowed="a folder with config.json, *.safetensors and a tokenizer, or a Hugging Face model id",
        hint="Check `model` in the job file; relative paths are relative to the job file.",
        path="model",
    )


def _hub_revision(model: str) -> str:
    """Return the commit of a hub model, from the local cache or from the hub."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        config = cached_file(model, "config.json")
    except (OSError, ValueError) as error:
        raise _missing(model, str(error).splitlines()[0]) from error
    revision = extract_commit_hash(config, None)
    if revision is None:
        raise _missing(model, "its revision is not known")
    return hashlib.sha256(f"{model}@{revision}".encode()).hexdigest()


def load_config(model: str) -> PretrainedConfig:
    """Load the model's configuration only. Raises InputError `unsupported_model` for what is no causal LM."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    _refuse_remote_code(model)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise _missing(model, str(error).splitlines()[0]) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"the model {model!r} is a {config.model_type} model, which does not generate text from left to right",
            kind="unsupported_model",
            given=config.model_type,
            allowed="causal language models, such as Llama, Qwen, Mistral, Gemma or GPT-2",
            hint="Choose a decoder-only model.",
            path="model",
        )
    return config


def longest_example(model: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the model can read: its positions, or what its tokenizer says where it has none."""
    positions = getattr(load_config(model).get_text_config(), "max_position_embeddings", None)
    return int(positions or tokenizer.model_max_length)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token pads with its end token."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"the tokenizer of {model!r} cannot be loaded: {str(error).splitlines()[0]}",
            kind="missing_tokenizer",
            given=model,
            allowed="a model folder with tokenizer.json and tokenizer_config.json",
            hint="Save the tokenizer into the model's folder: tokenizer.save_pretrained(FOLDER).",
            path="model",
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: str, *, precision: str = "fp32") -> PreTrainedModel:
    """Load a causal language model whose attention can run on flat batches where its code allows it."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from ftray.model import attention

    transformers_logging.disable_progress_bar()
    attention.register()
    config = load_config(model)
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, DTYPES[precision]),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and refused below
        )
    except SafetensorError as error:
        raise _incomplete(model, f"has a damaged weight file: {error}") from error
    loaded: PreTrainedModel
    loaded, report = answer
    missing = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if missing:
        names = ", ".join(missing[:3]) + (" ..." if missing[3:] else "")
        raise _incomplete(model, f"lacks {len(missing)} of its weights ({names}): they would be random")
    if loaded._supports_attention_backend and not needs_own_attention(config):
        loaded.set_attn_implementation(attention.NAME)
    loaded.config.use_cache = False
    return loaded


def own_device() -> torch.device:
    """Return where this process computes when nobody assigns it a place: its GPU, or the host."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def own_precision() -> Literal["bf16", "fp32"]:
    """Return the precision this process computes in when nobody says: bf16 where its GPU can."""
    import torch

    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def recompute_activations(model: PreTrainedModel) -> None:
    """Let every layer keep its input only, and run again in the backward pass."""
    with warnings.catch_warnings():
        # Newer versions of transformers call it activation_checkpointing_enable; older ones do not know that name.
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _incomplete(model: str, why: str) -> InputError:
    return InputError(
        f"{model!r} {why}",
        kind="incomplete_model",
        given=model,
        allowed="weights for every layer, in the shapes that config.json says",
        hint="Download the model again.",
        path="model",
    )


def needs_own_attention(config: PretrainedConfig) -> bool:
    """Return whether the attention has parts (soft-capping, sinks, chunks) that the flat layout does not compute."""
    text: Any = config.get_text_config()
    return any(
        getattr(text, key, None) is not None
        for key in ("attn_logit_softcapping", "attention_chunk_size", "num_attention_sinks", "layer_types_linear")
    ) or text.model_type in {"gpt_oss", "gemma2", "qwen3_next", "qwen3_5", "mamba", "jamba", "bamba", "falcon_h1"}


def _refuse_remote_code(model: str) -> None:
    path = Path(model) / "config.json"
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also what is no text
        raise _missing(model, f"its config.json is not JSON ({error})") from error
    if "auto_map" in config:
        raise InputError(
            f"the model {model!r} wants to run its own code (auto_map in config.json)",
            kind="remote_code",
            given="auto_map",
            allowed="architectures that transformers ships",
            hint="Use a model whose architecture is part of transformers.",
            path="model",
        )
