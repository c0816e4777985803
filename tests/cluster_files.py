"""What tests of `cluster/` read: manifests, schemas that reject unknown fields, and the commands inside them."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

CLUSTER = Path(__file__).resolve().parent.parent / "cluster"
KUBERAY = CLUSTER / "kuberay"
README = CLUSTER / "README.md"
SCHEMA_FILES = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "labels": TEXTS, "annotations": TEXTS},
}
"""Of a manifest's own metadata: what the API server knows more of, nothing here needs."""


@dataclass(frozen=True)
class Manifest:
    """One document of one file."""

    file: Path
    document: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.document["kind"])

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def id(self) -> str:
        return f"{self.file.name}:{self.kind}"

    @property
    def cluster(self) -> dict[str, Any]:
        """The cluster that a resource of KubeRay describes."""
        spec = self.document["spec"]
        return dict(spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Head and workers, of a resource of KubeRay."""
        return [self.cluster["headGroupSpec"], *self.cluster["workerGroupSpecs"]]

    @property
    def pods(self) -> list[dict[str, Any]]:
        """Every pod that it is or makes: metadata and spec."""
        if self.kind == "Pod":
            return [self.document]
        if self.kind in SCHEMA_FILES:
            return [group["template"] for group in self.groups]
        return [self.document["spec"]["template"]] if "template" in self.document.get("spec", {}) else []


def manifests(*kinds: str) -> list[Manifest]:
    """Return the documents of cluster/kuberay, of these kinds or of all."""
    found = [
        Manifest(file, document)
        for file in sorted(KUBERAY.glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    ]
    return [one for one in found if not kinds or one.kind in kinds]


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a structural schema of Kubernetes as JSON Schema that rejects what an API server would drop silently."""
    node = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes") and key != "format"}
    if "properties" in node:
        node["properties"] = {name: closed(inner) for name, inner in node["properties"].items()}
    if isinstance(node.get("items"), Mapping):
        node["items"] = closed(node["items"])
    if isinstance(node.get("additionalProperties"), Mapping):
        node["additionalProperties"] = closed(node["additionalProperties"])
    if node.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        node.setdefault("additionalProperties", False)
    if node.pop("nullable", False):
        node["type"] = [node["type"], "null"]
    return node


def closed_resource(crd: Mapping[str, Any], kind: str) -> Draft202012Validator:
    """Return what a whole resource of KubeRay must be."""
    schema = copy.deepcopy(dict(crd))
    # A manifest asks; the status is the operator's answer.
    del schema["properties"]["status"]
    schema["properties"]["metadata"] = METADATA
    schema["properties"] |= {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return Draft202012Validator(closed(schema))


def complaints(validator: Draft202012Validator, document: Any) -> list[str]:
    """Return what is wrong with a document, each with its place."""
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def misspelt(document: Any, validator: Draft202012Validator) -> Iterator[tuple[str, Any]]:
    """Yield the document once for every field of it, with that field misspelt; keys of the user's own are no fields."""
    yield from _misspelt(document, dict(validator.schema), "$", document)


def _misspelt(node: Any, schema: Mapping[str, Any], path: str, whole: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        fields = schema.get("properties")
        for key in list(node):
            if fields is not None:
                before = dict(node)
                node[f"{key}x"] = node.pop(key)
                yield f"{path}.{key}", whole
                node.clear()
                node.update(before)
            inner = (fields or {}).get(key) or schema.get("additionalProperties")
            yield from _misspelt(node[key], inner if isinstance(inner, Mapping) else {}, f"{path}.{key}", whole)
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _misspelt(item, schema.get("items", {}), f"{path}[{index}]", whole)


def code_blocks(markdown: str) -> list[str]:
    """Return the shell blocks of a text."""
    return re.findall(r"^```bash\n(.*?)^```$", markdown, flags=re.MULTILINE | re.DOTALL)


def commands(shell: str) -> list[list[str]]:
    """Return the simple commands of shell lines as words, without assignments, redirections and comments."""
    found: list[list[str]] = []
    for line in shell.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if word and set(word) <= set("|&;<>"):
                found.append(words)
                words = []
            else:
                words.append(word)
        found.append(words)
    return [stripped for words in found if (stripped := _without_assignments(words))]


def _without_assignments(words: Sequence[str]) -> list[str]:
    rest = list(words)
    while rest and (rest[0] == "export" or re.match(r"^\w+=", rest[0])):
        rest.pop(0)
    return rest


def ftray_arguments(words: Sequence[str]) -> list[str] | None:
    """Return what `ftray` or `python -m ftray` is given somewhere in a command; None where it is not called."""
    for index, word in enumerate(words):
        if word == "ftray" or word.endswith("/bin/ftray"):
            return list(words[index + 1 :])
    return None


def require_command(group: Any, name: str, arguments: Sequence[str], *, ends: type[BaseException]) -> None:
    """Parse arguments as a command line does, without running anything. Raises its usage error.

    `ends`: what an option that only prints raises, such as --help.
    """
    try:
        context = group.make_context(name, list(arguments))
        while hasattr(context.command, "resolve_command"):
            rest = [*context._protected_args, *context.args]
            if not rest:
                return
            word, command, rest = context.command.resolve_command(context, rest)
            context = command.make_context(word, rest, parent=context)
    except ends:
        return
