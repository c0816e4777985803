"""Which files of a folder are the adapter, or the model, and which lie there for other reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ftray.errors import InputError
from ftray.model.base import IDENTITY_SUFFIXES

Kind = Literal["adapter", "model"]
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
CARD_FILE = "README.md"
BESIDE = ("record.json", CARD_FILE, "requirements.txt")


def contents(folder: Path, *, kind: str) -> list[Path]:
    """Return the files that make the adapter or model in `folder`, sorted. Raises InputError `bad_adapter`."""
    if kind == "adapter":
        files = [folder / name for name in ADAPTER_FILES]
        missing = [path.name for path in files if not path.is_file()]
    else:
        found = folder.iterdir() if folder.is_dir() else []
        files = [path for path in found if path.suffix in IDENTITY_SUFFIXES and path.name not in BESIDE]
        names = {path.name for path in files}
        missing = [] if "config.json" in names else ["config.json"]
        missing += [] if any(path.match("model*.safetensors") for path in files) else ["model.safetensors"]
        missing += [] if names & {"tokenizer.json", "tokenizer.model"} else ["tokenizer.json"]
    if missing:
        raise InputError(
            f"{folder} has no {missing[0]}",
            kind="bad_adapter",
            given=sorted(path.name for path in folder.iterdir()) if folder.is_dir() else str(folder),
            allowed=list(ADAPTER_FILES) if kind == "adapter" else "config.json, model*.safetensors and the tokenizer",
            hint="Save it with save_pretrained as safetensors, and a model with its tokenizer.",
            file=str(folder),
        )
    return sorted(files)
