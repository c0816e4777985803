"""Adapters to register, and an object store on the disk that creates objects as S3 does: wholly, and only once."""

from __future__ import annotations

import os
import secrets
import warnings
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from peft import LoraConfig, get_peft_model

from ftray.model.base import load_model


class OnceFileSystem(LocalFileSystem):
    """Objects as files; one that is to be created appears whole, by a link that fails where there is one."""

    protocol = "once"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(LocalFileSystem._strip_protocol(str(path).removeprefix("once://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        target = Path(self._strip_protocol(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        written = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        written.write_bytes(value)
        if mode == "create":
            try:
                os.link(written, target)
            finally:
                written.unlink()
        else:
            os.replace(written, target)

    def put_file(self, lpath: str, rpath: str, callback: Any = None, **extra: Any) -> None:
        Path(self._strip_protocol(rpath)).parent.mkdir(parents=True, exist_ok=True)
        super().put_file(lpath, rpath, **extra)


fsspec.register_implementation("once", OnceFileSystem, clobber=True)


def write_adapter(base: Path, folder: Path, *, seed: int, rank: int = 4, scale: float = 0.2, **config: Any) -> Path:
    """Write an ordinary PEFT folder with random factors, as PEFT writes it."""
    model: Any = load_model(str(base))
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8, "target_modules": "all-linear",
        "fan_in_fan_out": hasattr(model, "transformer"), **config,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = get_peft_model(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.save_pretrained(str(folder))
    return folder


def record_of(name: str, *, verdict: str = "ship", **more: Any) -> dict[str, Any]:
    """Return what a run would say of its adapter, as far as the registry itself reads it."""
    return {
        "name": name,
        "kind": "adapter",
        "base": {"name": "base", "digest": "0" * 64},
        "verdict": verdict,
        "verdict_reasons": [],
        "metrics": {},
        "card": f"# {name}\n",
        **more,
    }


def write_files(folder: Path, text: str) -> Path:
    """Write a folder that has an adapter's files by name only: enough for whoever does not read them."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "adapter_model.safetensors").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text("not part of it", encoding="utf-8")
    return folder
