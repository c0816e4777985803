"""Import an ordinary PEFT folder, as people share them: read as a stranger's.

What is registered is a copy that was made first and checked then, so that nothing can change in between. Weights are
safetensors, nothing is ever unpickled, no code comes along, and the adapter must fit its base and do something.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftray.artifacts import digest_file, read_json
from ftray.data.templates import load_template
from ftray.data.tokenization import Tokenization
from ftray.errors import InputError
from ftray.model.base import identify, load_config, load_tokenizer, longest_example, own_precision
from ftray.model.lora import CONFIG_FILE, WEIGHTS_FILE
from ftray.registry.contents import CARD_FILE
from ftray.registry.record import adapter_shape, template_record
from ftray.registry.registry import Registered, Registry
from ftray.registry.safety import copy_parts, require_safe
from ftray.registry.store import RECORD_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an imported adapter may be."""

    rank: int = 256
    weight_bytes: int = 4 << 30


def import_adapter(
    registry: Registry,
    folder: Path,
    *,
    name: str,
    model: str | None = None,
    sha256: str | None = None,
    template: str | None = None,
    other_base_name: bool = False,
    limits: Limits | None = None,
) -> Registered:
    """Check a PEFT folder, fingerprint it on its base, and register it; its verdict is `none`.

    `model`: its base, else the one that its configuration names; `other_base_name` takes a base of another name than
    that. `sha256`: what adapter_model.safetensors must have. `template`: how chats are rendered, as `data.template`;
    None takes the tokenizer's own where it has one.

    Raises InputError: `unsafe_adapter` (pickles, code, links out of the folder), `bad_adapter`, `unsupported_adapter`,
    `wrong_base`, `adapter_mismatch`, `too_large`, `wrong_digest`, `not_live`, and what loading the base raises.
    """
    limits = limits or Limits()
    registry.require_free(name)
    require_safe(folder)
    staged = registry.store.scratch()
    try:
        copy_parts(folder, staged, weight_bytes=limits.weight_bytes)
        digest = digest_file(staged / WEIGHTS_FILE)
        if sha256 is not None and digest != sha256.lower():
            raise InputError(
                f"{folder / WEIGHTS_FILE} is not the file it should be",
                kind="wrong_digest",
                given=digest,
                allowed=sha256.lower(),
                hint="Download it again; the SHA-256 is on the file's page on the hub.",
                file=str(folder / WEIGHTS_FILE),
            )
        base = _base_of(folder, staged, model=model, other_name=other_base_name)
        with _named(folder, staged):
            require_fit(staged, base, limits)
            record = _describe(staged, base, name=name, template=template)
        return registry.put(staged, {**record, "imported": {"from": str(folder), "weights_sha256": digest}})
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def _named(folder: Path, staged: Path) -> Iterator[None]:
    """Let errors about the copy name the folder that people know."""
    try:
        yield
    except InputError as error:
        message = error.message.replace(str(staged), str(folder)).replace(staged.name, folder.name)
        raise InputError(
            message,
            kind=error.kind,
            given=str(folder) if error.given == str(staged) else error.given,
            allowed=error.allowed,
            hint=error.hint,
            path=error.path,
            file=str(folder) if error.file else None,
        ) from error


def _base_of(folder: Path, staged: Path, *, model: str | None, other_name: bool) -> str:
    """Return the base's folder or id. Raises InputError `wrong_base` where the adapter names another one."""
    config = read_json(staged / CONFIG_FILE)
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    base = model or named
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{folder / CONFIG_FILE} does not name a base model",
            kind="wrong_base",
            given=named,
            allowed="a local folder or a Hugging Face id",
            hint="Say what the adapter belongs to: --model MODEL.",
        )
    identity = identify(base)
    if isinstance(named, str) and named and not other_name and _last_part(named) != _last_part(identity.name):
        raise _wrong_base(folder, given=identity.name, allowed=named)
    if (folder / RECORD_FILE).is_file():
        # A run of ftray's says which base it was, to the byte.
        trained_on = read_json(folder / RECORD_FILE).get("base", {})
        if trained_on.get("digest", identity.digest) != identity.digest:
            raise _wrong_base(folder, given=identity.digest, allowed=trained_on["digest"])
    return base


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].casefold()


def _wrong_base(folder: Path, *, given: str, allowed: str) -> InputError:
    return InputError(
        f"{folder} was trained on another base than {given}",
        kind="wrong_base",
        given=given,
        allowed=allowed,
        hint="Name its base: --model MODEL. If that is it under another name, add --other-base-name.",
    )


def require_fit(folder: Path, model: str, limits: Limits) -> None:
    """Raise InputError unless every factor belongs to a linear layer of the base, is finite, and does something."""
    import torch

    from ftray.model.bank_peft import read_adapter

    adapter, factors = read_adapter(folder)
    ranks = {layer: adapter.rank_of(layer) for layer in adapter.layers}
    declared = max([adapter.rank, *ranks.values()])
    if min(ranks.values()) < 1 or declared > limits.rank:
        raise InputError(
            f"the adapter's rank is {declared}",
            kind="too_large",
            given=declared,
            allowed=f"1 to {limits.rank}",
            hint="See whether this is an adapter; --max-rank allows more.",
        )
    shapes = _linear_shapes(model)
    for layer, (a, b) in factors.items():
        if layer not in shapes:
            raise _mismatch(model, f"its layer {layer} is no linear layer of the base", layer, sorted(shapes)[:3])
        width_in, width_out = shapes[layer]
        expected = [[ranks[layer], width_in], [width_out, ranks[layer]]]
        if [list(a.shape), list(b.shape)] != expected:
            raise _mismatch(
                model, f"its factors for {layer} have other shapes", [list(a.shape), list(b.shape)], expected
            )
        if not a.is_floating_point() or not b.is_floating_point() or min(a.element_size(), b.element_size()) < 2:
            raise _bad(f"the factors of {layer} are {a.dtype}", "fp32, bf16 or fp16")
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise _bad(f"the factors of {layer} are not finite", "finite numbers")
    if all(not bool(b.any()) for _, b in factors.values()):
        raise InputError(
            "the adapter is not live: its B factors are all zero, so that it answers as its base",
            kind="not_live",
            given=f"{len(factors)} layers with B = 0",
            allowed="an adapter that has been trained",
            hint="Save it after training; a fresh LoRA begins with B = 0.",
        )


def _linear_shapes(model: str) -> dict[str, tuple[int, int]]:
    """Return (in, out) of the base's linear layers by name, from its configuration alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftray.model.lora import is_linear, is_transposed

    with torch.device("meta"):
        base: Any = AutoModelForCausalLM.from_config(load_config(model))
    shapes = {}
    for name, module in base.named_modules():
        if is_linear(module):
            first, second = module.weight.shape
            shapes[name] = (first, second) if is_transposed(module) else (second, first)
    return shapes


def _mismatch(model: str, why: str, given: Any, allowed: Any) -> InputError:
    return InputError(
        f"the adapter does not fit the model {model}: {why}",
        kind="adapter_mismatch",
        given=given,
        allowed=allowed,
        hint="Say which base it belongs to: --model MODEL.",
    )


def _bad(what: str, allowed: str) -> InputError:
    return InputError(
        what,
        kind="bad_adapter",
        given=what,
        allowed=allowed,
        hint="Save the adapter again, or download it again.",
    )


def _describe(staged: Path, base: str, *, name: str, template: str | None) -> dict[str, Any]:
    """Return an imported adapter's record, its fingerprint included."""
    from ftray.registry.probing import fingerprint_of_folder, text_probes

    tokenizer = load_tokenizer(base)
    chosen = template or ("tokenizer" if getattr(tokenizer, "chat_template", None) else None)
    rendered = load_template(chosen, tokenizer, base=Path.cwd()) if chosen else None
    tokenization = Tokenization(
        tokenizer, template=rendered, loss_on="last_turn", max_length=longest_example(base, tokenizer)
    )
    identity = identify(base)
    card = staged / CARD_FILE
    record: Mapping[str, Any] = {
        "name": name,
        "kind": "adapter",
        "base": {"name": identity.name, "digest": identity.digest, "model": base},
        **adapter_shape(staged),
        "run_id": None,
        "data_digests": {},
        "metrics": {},
        "verdict": "none",
        "verdict_reasons": ["Imported: ftray has not compared it with its base."],
        "template": template_record(rendered),
        "stop_token_ids": list(tokenization.stop_token_ids),
        "fingerprint": fingerprint_of_folder(
            staged, base, kind="adapter", probes=text_probes(tokenizer), precision=own_precision()
        ),
        "job": None,
        "card": card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
    }
    return dict(record)
