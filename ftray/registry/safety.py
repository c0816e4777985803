"""A folder from a stranger: nothing in it that could run, nothing outside of it that it points at.

Every file is looked at, although two or three are kept: who shares a pickle beside the weights has others load it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftray.errors import InputError
from ftray.model.lora import CONFIG_FILE, WEIGHTS_FILE
from ftray.registry.contents import ADAPTER_FILES, CARD_FILE

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
TEXT_BYTES = 1 << 20
"""Largest adapter_config.json and README.md."""
JSON_BYTES = 64 << 20
"""Largest other JSON file that is looked through: tokenizers are large."""


def require_safe(folder: Path) -> None:
    """Raise InputError `unsafe_adapter` for pickles, code of its own, and links that leave the folder."""
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder",
            kind="missing_file",
            given=str(folder),
            allowed=f"a PEFT folder with {' and '.join(ADAPTER_FILES)}",
            hint="Download it first: hf download REPO --local-dir FOLDER.",
        )
    places = _own_places(folder)
    for path in _everything(folder):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in places):
            raise _unsafe(folder, path, f"is a link that leaves the folder (to {os.readlink(path)})", "Copy its target")
        if path.is_dir():
            continue
        if not path.is_file():
            raise _unsafe(folder, path, "is no ordinary file", "Delete it")
        if path.suffix.lower() in PICKLES:
            raise _unsafe(folder, path, "can hold pickled code", f"Delete it, if {WEIGHTS_FILE} has the weights")
        if path.suffix.lower() == ".json" and _wants_code(folder, path):
            raise _unsafe(folder, path, "wants to run code that comes with it (auto_map)", "Use another adapter")


def _own_places(folder: Path) -> list[Path]:
    """Return where links may lead: into the folder, or to the files of the hub's cache that it is a snapshot in."""
    root = folder.resolve()
    cached = root.parent.parent / "blobs"
    return [root, cached] if root.parent.name == "snapshots" and cached.is_dir() else [root]


def _everything(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        yield from (Path(root, name) for name in sorted([*folders, *files]))


def _wants_code(folder: Path, path: Path) -> bool:
    if path.stat().st_size > JSON_BYTES:
        raise _unsafe(folder, path, f"is larger than {JSON_BYTES >> 20} MiB", "Delete it")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _unsafe(folder, path, f"is no JSON ({error})", "Delete it, or download it again") from error
    return _has_key(content, "auto_map")


def _has_key(value: Any, key: str) -> bool:
    """Return whether a JSON value has a key anywhere in it."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            if key in one:
                return True
            todo += one.values()
        elif isinstance(one, list):
            todo += one
    return False


def _unsafe(folder: Path, path: Path, what: str, do: str) -> InputError:
    return InputError(
        f"{path.relative_to(folder)} in {folder} {what}",
        kind="unsafe_adapter",
        given=str(path.relative_to(folder)),
        allowed=f"{', '.join(ADAPTER_FILES)}, {CARD_FILE} and other plain files",
        hint=f"{do}; then import the folder again.",
        file=str(path),
    )


def copy_parts(folder: Path, staged: Path, *, weight_bytes: int) -> None:
    """Copy what an adapter is made of. Raises InputError `bad_adapter` and `too_large`."""
    allowed = {CONFIG_FILE: TEXT_BYTES, WEIGHTS_FILE: weight_bytes, CARD_FILE: TEXT_BYTES}
    for name, most in allowed.items():
        path = folder / name
        if not path.is_file():
            if name == CARD_FILE:
                continue
            raise InputError(
                f"{folder} has no {name}",
                kind="bad_adapter",
                given=sorted(one.name for one in folder.iterdir()),
                allowed=f"a folder with {' and '.join(ADAPTER_FILES)}",
                hint="Save the adapter with PEFT: model.save_pretrained(FOLDER).",
                file=str(folder),
            )
        _copy_file(path, staged / name, most=most)


def _copy_file(path: Path, target: Path, *, most: int) -> None:
    with path.open("rb") as source, target.open("wb") as file:
        while block := source.read(1 << 20):
            file.write(block)
            if file.tell() > most:
                raise InputError(
                    f"{path} is larger than {most:,} bytes",
                    kind="too_large",
                    given=path.stat().st_size,
                    allowed=most,
                    hint="See whether this is an adapter; --max-bytes allows larger weights.",
                    file=str(path),
                )
