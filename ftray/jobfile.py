"""Read a job file: YAML, ${VAR}, --set, and messages that point at the line to change."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ftray.errors import InputError, nearest

VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
LATER_SECTIONS = {"variant", "lora_plus_ratio", "accelerator_hours"}
"""Sections of the contract whose part is not built yet."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that 1e-4 is a number, as everybody who writes a learning rate means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)|\.[0-9_]+(?:[eE][-+]?[0-9]+)?)$""",
        re.X,
    ),
    list("-+0123456789."),
)


def read_yaml(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a job file's mapping and the line of every key, by dotted path."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the job file {file} cannot be read: {error.strerror}",
            kind="missing_file",
            given=str(file),
            allowed="a YAML job file",
            hint="Check the path; `ftray init DATA` writes a commented job file.",
            file=str(file),
        ) from error
    except UnicodeDecodeError as error:
        raise _not_yaml(file, "it is not UTF-8 text", None) from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        content = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        mark = getattr(error, "problem_mark", None)
        raise _not_yaml(file, str(getattr(error, "problem", error)), mark.line + 1 if mark else None) from error
    if not isinstance(content, dict):
        raise _not_yaml(file, "it holds no keys", 1)
    lines: dict[str, int] = {}
    try:
        for path, line in _lines(node, ""):
            if path in lines:
                # YAML would take the last one and forget the others.
                raise _not_yaml(file, f"the key `{path}` stands there twice, first in line {lines[path]}", line)
            lines[path] = line
    except RecursionError as error:
        raise _not_yaml(file, "an alias (*name) stands inside what it names", None) from error
    return content, lines


def _not_yaml(file: Path, problem: str, line: int | None) -> InputError:
    return InputError(
        f"{file} is not a YAML job file: {problem}",
        kind="not_yaml",
        allowed="`key: value` lines; see ftray schema",
        hint="Check indentation and quotes around that line.",
        file=str(file),
        line=line,
    )


def _lines(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}.{key.value}" if prefix else str(key.value)
            yield path, key.start_mark.line + 1
            yield from _lines(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield f"{prefix}.{index}", value.start_mark.line + 1
            yield from _lines(value, f"{prefix}.{index}")


def apply_sets(content: dict[str, Any], sets: Sequence[str]) -> None:
    """Put `key.path=value` settings into a job's mapping; values are read as YAML."""
    for setting in sets:
        path, separator, value = setting.partition("=")
        keys = path.split(".")
        if not separator or not all(keys):
            raise InputError(
                f"--set {setting!r} is not key.path=value",
                kind="bad_set",
                given=setting,
                allowed="for example --set train.learning_rate=2e-4",
                hint="Write the key as in the job file, with dots, then = and the value.",
            )
        place: Any = content
        for position, key in enumerate(keys[:-1]):
            place = _step_into(place, key, setting, ".".join(keys[: position + 1]))
        if isinstance(place, list):
            place[_list_index(place, keys[-1], setting)] = _value_of(value, setting)
        else:
            place[keys[-1]] = _value_of(value, setting)


def _value_of(text: str, setting: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(
            f"--set {setting!r}: the value is not YAML: {getattr(error, 'problem', error)}",
            kind="bad_set",
            given=setting,
            allowed="a value as in the job file, for example 8, [a, b] or {stage: 2}",
            hint="Check brackets and quotes; the shell takes quotes away unless the whole setting is quoted.",
        ) from error


def _step_into(place: Any, key: str, setting: str, path: str) -> Any:
    if isinstance(place, list):
        return place[_list_index(place, key, setting)]
    inner = place.setdefault(key, {})
    if not isinstance(inner, dict | list):
        raise InputError(
            f"--set {setting!r}: {path} is {inner!r}, not a section",
            kind="bad_set",
            given=setting,
            allowed="a path of section names ending in a key",
            hint=f"Set {path} itself, or remove it from the job file.",
            path=path,
        )
    return inner


def _list_index(place: list[Any], key: str, setting: str) -> int:
    if key.isdigit() and int(key) < len(place):
        return int(key)
    raise InputError(
        f"--set {setting!r}: {key} is not a position in a list of {len(place)}",
        kind="bad_set",
        given=setting,
        allowed=f"0 to {len(place) - 1}",
        hint="Positions in lists start at 0.",
    )


def expand_path(text: str, *, base: Path, path: str, file: str | None, line: int | None) -> str:
    """Expand ${VAR} and ${VAR:-default}. Raises InputError `unset_variable`.

    Paths are relative to the job file (`base`); but who sets a variable in a shell thinks of the shell's folder, so
    that a folder which is only there is meant.
    """

    def value_of(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        value = os.environ.get(name, default)
        if value is None:
            raise InputError(
                f"{path} uses ${{{name}}}, and the environment variable {name} is not set",
                kind="unset_variable",
                given=text,
                allowed=f"export {name}=..., or ${{{name}:-default}}",
                hint=f"Set it: export {name}=/path/to/folder",
                path=path,
                file=file,
                line=line,
            )
        is_from_shell = name in os.environ and match.start() == 0 and value.startswith(".")
        if is_from_shell and not (base / value).exists() and Path(value).exists():
            return str(Path(value).resolve())
        return value

    return VARIABLE.sub(value_of, text)


def resolve_path(text: str, base: Path) -> str:
    """Return an absolute path for what exists beside the job file; URIs and hub names stay as they are."""
    if "://" in text:
        return text
    candidate = base / os.path.expanduser(text)
    return str(candidate.resolve()) if candidate.exists() or text.startswith((".", "/", "~")) else text


def validate(
    model: type[BaseModel], content: Mapping[str, Any], *, file: str | None, lines: Mapping[str, int]
) -> BaseModel:
    """Return `content` as `model`; the first problem becomes one clear InputError."""
    try:
        return model.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise _explain(error, model, file=file, lines=lines) from None


def _explain(
    error: ValidationError, model: type[BaseModel], *, file: str | None, lines: Mapping[str, int]
) -> InputError:
    problems = error.errors(include_url=False)
    # Of a union's several complaints the deepest is about what was meant; an unknown key comes first of all.
    problem = min(problems, key=lambda item: (item["type"] != "extra_forbidden", -len(item["loc"])))
    keys = [str(part) for part in problem["loc"] if not _is_union_label(part)]
    if problem["type"] == "extra_forbidden":
        # The unknown key itself may look like anything: batch-size, learningRate, 1.
        keys = [str(part) for part in problem["loc"][:-1] if not _is_union_label(part)] + [str(problem["loc"][-1])]
    path = ".".join(keys)
    line = next((lines[".".join(keys[:n])] for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in lines), None)
    given = problem.get("input")
    if problem["type"] == "extra_forbidden":
        section = _model_at(model, keys[:-1], branches=[part for part in problem["loc"][:-1] if _is_union_label(part)])
        return _unknown_key(keys, section, file=file, line=line)
    if problem["type"] == "missing":
        return InputError(
            f"the key {path} is missing",
            kind="missing_key",
            allowed=_describe(model, keys),
            hint=f"Add `{keys[-1]}: ...`; `ftray init DATA` writes a complete job file.",
            path=path,
            file=file,
            line=line,
        )
    here = [item["msg"] for item in problems if [str(p) for p in item["loc"] if not _is_union_label(p)] == keys]
    return InputError(
        f"{path}: {given!r} is not allowed" if path else f"the job is not allowed: {problem['msg']}",
        kind="bad_value",
        given=given if isinstance(given, str | int | float | bool | list | dict | None) else str(given),
        allowed=" or ".join(
            dict.fromkeys(message.removeprefix("Input ").removeprefix("Value error, ") for message in here)
        ),
        hint=_describe(model, keys) or "See ftray schema.",
        path=path,
        file=file,
        line=line,
    )


def _is_union_label(part: Any) -> bool:
    """Return whether a location part is pydantic's name for a union's branch rather than a key or an index."""
    return isinstance(part, str) and (not re.fullmatch(r"[a-z_][a-z0-9_]*", part) or part in _BRANCHES)


_BRANCHES = {"float", "int", "str", "bool", "constrained-int", "constrained-float", "is-instance"}


def _unknown_key(keys: list[str], section: type[BaseModel] | None, *, file: str | None, line: int | None) -> InputError:
    known = sorted(section.model_fields) if section else []
    key = keys[-1]
    close = nearest(key, known)
    where = f"in `{'.'.join(keys[:-1])}`" if len(keys) > 1 else "at the top level"
    if key in LATER_SECTIONS and close != key:
        hint = f"`{key}` belongs to a part of ftray that this version does not have yet; remove it."
    else:
        hint = f"Did you mean `{close}`?" if close else "Remove it; ftray schema lists every key."
    return InputError(
        f"the key `{key}` is not known {where}",
        kind="unknown_key",
        given=key,
        allowed=known,
        hint=hint,
        path=".".join(keys),
        file=file,
        line=line,
    )


def _model_at(model: type[BaseModel], keys: Sequence[str], *, branches: Sequence[Any] = ()) -> type[BaseModel] | None:
    """Return the section at a dotted path: of a union the branch that is named, else the first."""
    current: type[BaseModel] | None = model
    for key in keys:
        if key.isdigit():
            continue
        field = current.model_fields.get(key) if current else None
        sections = list(_models_in(field.annotation)) if field else []
        named = [section for section in sections if section.__name__ in branches]
        current = next(iter([*named, *sections]), None)
    return current


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _describe(model: type[BaseModel], keys: Sequence[str]) -> str:
    section = _model_at(model, keys[:-1])
    while keys and keys[-1].isdigit():
        keys = keys[:-1]
    field = section.model_fields.get(keys[-1]) if section and keys else None
    return " ".join((field.description or "").split()) if field else ""
