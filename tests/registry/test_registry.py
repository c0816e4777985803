"""Registering, finding, promoting and deleting, the same in every kind of store."""

from __future__ import annotations

import json
import multiprocessing
import secrets
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_world import record_of, write_files

from ftray.artifacts import digest_files
from ftray.errors import InputError, RunError
from ftray.registry.registry import Registered, Registry, open_registry

Put = Callable[..., Registered]


def test_what_is_registered_is_found_by_name_prefix_and_alias(registry: Registry, put: Put) -> None:
    first, second = put("boxes", "one"), put("boxes", "two")
    assert first.digest != second.digest
    assert registry.resolve("boxes").digest == second.digest
    found = registry.resolve(f"boxes@{first.digest[:12]}")
    assert (found.digest, found.via_alias, found.record["bytes"]) == (first.digest, None, len("{}") + len("one"))
    registry.promote("champion", "boxes", first.digest, by="me", reason="better")
    via = registry.resolve("champion")
    assert (via.name, via.digest, via.via_alias) == ("boxes", first.digest, "champion")
    assert [record["digest"] for record in registry.list("boxes")] == [second.digest, first.digest]


def test_the_digest_is_of_every_file_but_the_record_and_the_card_is_none(registry: Registry, put: Put) -> None:
    one = put("boxes")
    folder = registry.files("boxes", one.digest)
    named = sorted(path.name for path in folder.iterdir())
    assert [name for name in named if name != "record.json"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert digest_files(path for path in folder.iterdir() if path.name != "record.json") == one.digest


def test_the_contract_s_layout(tmp_path: Path) -> None:
    registry = open_registry(tmp_path)
    one = registry.put(write_files(tmp_path / "a", "x"), record_of("boxes"))
    registry.promote("champion", "boxes", one.digest)
    folder = tmp_path / "registry" / "adapters" / "boxes" / one.digest
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "record.json",
    }
    alias = json.loads((tmp_path / "registry" / "aliases" / "champion.json").read_text())
    assert {"alias", "name", "digest", "generation", "previous", "by", "reason", "at"} <= set(alias)
    assert list((tmp_path / "registry").glob(".staged-*")) == []


def test_the_same_files_again_are_registered_once(registry: Registry, put: Put) -> None:
    first, again = put("boxes"), put("boxes")
    assert (first.is_new, again.is_new) == (True, False)
    assert len(registry.list()) == 1


def test_a_second_judgement_replaces_the_first_and_nothing_else(registry: Registry, put: Put) -> None:
    one = put("boxes", verdict="inconclusive")
    before = registry.get("boxes", one.digest)
    put("boxes", verdict="ship")
    after = registry.get("boxes", one.digest)
    assert (after["verdict"], after["created_at"]) == ("ship", before["created_at"])
    put("boxes", verdict="none")
    assert registry.get("boxes", one.digest)["verdict"] == "ship"


def test_promotion_needs_a_passing_verdict_or_a_recorded_reason(registry: Registry, put: Put) -> None:
    one = put("boxes", verdict="do_not_ship")
    with pytest.raises(InputError, match="do_not_ship") as refused:
        registry.promote("champion", "boxes", one.digest)
    assert refused.value.kind == "not_shippable"
    assert registry.aliases() == {}
    with pytest.raises(InputError, match="needs a reason"):
        registry.promote("champion", "boxes", one.digest, force="  ")
    forced = registry.promote("champion", "boxes", one.digest, force="the demo is at noon")
    assert (forced["reason"], forced["forced"], forced["generation"]) == ("the demo is at noon", True, 1)
    assert registry.aliases()["champion"]["reason"] == "the demo is at noon"


def test_promote_and_roll_back_count_generations(registry: Registry, put: Put) -> None:
    one, two = put("boxes", "one"), put("boxes", "two")
    assert registry.promote("champion", "boxes", one.digest, generation=0)["previous"] is None
    moved = registry.promote("champion", "boxes", two.digest, generation=1)
    assert (moved["generation"], moved["previous"]) == (2, {"name": "boxes", "digest": one.digest})
    assert registry.promote("champion", "boxes", two.digest) == registry.aliases()["champion"]
    back = registry.rollback("champion", generation=2)
    assert (back["generation"], back["digest"]) == (3, one.digest)
    assert registry.rollback("champion")["digest"] == two.digest
    assert registry.resolve("champion").digest == two.digest


def test_a_swap_of_an_old_generation_is_lost(registry: Registry, put: Put) -> None:
    one, two = put("boxes", "one"), put("boxes", "two")
    registry.promote("champion", "boxes", one.digest)
    for stale in (0, 5):
        with pytest.raises(RunError) as lost:
            registry.promote("champion", "boxes", two.digest, generation=stale)
        assert (lost.value.kind, lost.value.exit_code) == ("lost_swap", 1)
        assert lost.value.allowed == {"generation": 1}
    assert registry.resolve("champion").digest == one.digest


def test_there_is_nothing_to_roll_back_to(registry: Registry, put: Put) -> None:
    one = put("boxes")
    with pytest.raises(InputError) as unknown:
        registry.rollback("champion")
    assert unknown.value.kind == "unknown_alias"
    registry.promote("champion", "boxes", one.digest)
    with pytest.raises(InputError) as none:
        registry.rollback("champion")
    assert none.value.kind == "no_previous"


def test_an_adapter_that_an_alias_points_at_is_not_deleted(registry: Registry, put: Put) -> None:
    one, two = put("boxes", "one"), put("boxes", "two")
    registry.promote("champion", "boxes", one.digest)
    with pytest.raises(InputError, match="champion points at") as refused:
        registry.delete("boxes", one.digest)
    assert refused.value.kind == "in_use"
    registry.delete("boxes", two.digest)
    assert [record["digest"] for record in registry.list()] == [one.digest]
    registry.delete("boxes", one.digest, force=True)
    assert registry.list() == []
    with pytest.raises(InputError) as dangling:
        registry.resolve("champion")
    assert dangling.value.kind == "dangling_alias"


def test_a_deleted_alias_gives_no_generation_twice(registry: Registry, put: Put) -> None:
    one = put("boxes")
    registry.promote("champion", "boxes", one.digest)
    registry.delete_alias("champion")
    assert registry.aliases() == {}
    with pytest.raises(InputError, match="no adapter and no alias"):
        registry.resolve("champion")
    with pytest.raises(RunError):
        registry.promote("champion", "boxes", one.digest, generation=1)
    again = registry.promote("champion", "boxes", one.digest)
    assert (again["generation"], again["previous"]) == (3, None)


def test_aliases_and_adapters_never_share_a_name(registry: Registry, put: Put) -> None:
    one = put("boxes")
    with pytest.raises(InputError) as alias:
        registry.promote("boxes", "boxes", one.digest)
    assert alias.value.kind == "ambiguous_name"
    registry.promote("champion", "boxes", one.digest)
    with pytest.raises(InputError) as adapter:
        put("champion")
    assert adapter.value.kind == "ambiguous_name"


@pytest.mark.parametrize("name", ["B", "x", "a/b", "../a", "a" * 65, "-a", ".hidden", "ä-b", "a b", "a\n", ""])
def test_names_that_are_none_reach_no_store(registry: Registry, put: Put, name: str) -> None:
    one = put("boxes")
    for refused in (
        lambda: put(name),
        lambda: registry.promote(name, "boxes", one.digest),
        lambda: registry.resolve(name),
        lambda: registry.rollback(name),
    ):
        with pytest.raises(InputError) as error:
            refused()
        assert error.value.kind == "bad_name"


@pytest.mark.parametrize("name", ["../aliases", "..", "boxes/../other"])
@pytest.mark.parametrize("digest", ["champion.json", "0" * 64, "../" * 4])
def test_no_path_is_made_of_what_a_request_says(registry: Registry, put: Put, name: str, digest: str) -> None:
    one = put("boxes")
    registry.promote("champion", "boxes", one.digest)
    for asked in (
        lambda: registry.get(name, digest),
        lambda: registry.has(name, digest),
        lambda: registry.files(name, digest),
        lambda: registry.delete(name, digest, force=True),
        lambda: registry.promote("live", name, digest),
        lambda: registry.list(name),
    ):
        with pytest.raises(InputError) as error:
            asked()
        assert error.value.kind == "bad_name"
    if digest != "0" * 64:
        assert not registry.has("boxes", digest)
        with pytest.raises(InputError) as error:
            registry.get("boxes", digest)
        assert error.value.kind == "bad_reference"


def test_an_unknown_adapter_names_its_nearest(registry: Registry, put: Put) -> None:
    put("intent-router")
    with pytest.raises(InputError, match="no adapter") as error:
        registry.resolve("intent-ruoter")
    assert (error.value.kind, error.value.hint) == ("unknown_adapter", "Did you mean intent-router?")


def test_a_missing_file_is_registered_nowhere(registry: Registry, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "half", "x")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        registry.put(folder, record_of("boxes"))
    assert registry.list() == []


def test_changed_files_are_not_handed_out(tmp_path: Path) -> None:
    registry = open_registry(tmp_path)
    one = registry.put(write_files(tmp_path / "a", "x"), record_of("boxes"))
    weights = registry.files("boxes", one.digest) / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_text("y", encoding="utf-8")
    with pytest.raises(RunError) as changed:
        registry.verify("boxes", one.digest)
    assert changed.value.kind == "changed_adapter"
    with pytest.raises(RunError):
        registry.export("boxes", one.digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_copy_of_a_remote_adapter_is_fetched_again(tmp_path: Path) -> None:
    registry = open_registry(tmp_path, f"once://{tmp_path / 'objects'}")
    one = registry.put(write_files(tmp_path / "a", "x"), record_of("boxes"))
    weights = registry.files("boxes", one.digest) / "adapter_model.safetensors"
    weights.write_text("damaged", encoding="utf-8")
    assert (registry.files("boxes", one.digest) / "adapter_model.safetensors").read_text(encoding="utf-8") == "x"
    remote = next((tmp_path / "objects" / "adapters").rglob("adapter_model.safetensors"))
    remote.write_text("changed there", encoding="utf-8")
    weights.unlink()
    with pytest.raises(RunError) as changed:
        registry.files("boxes", one.digest)
    assert changed.value.kind == "changed_adapter"


def test_an_export_is_the_files_and_the_card(registry: Registry, put: Put, tmp_path: Path) -> None:
    one = put("boxes")
    out = registry.export("boxes", one.digest, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert (out / "README.md").read_text(encoding="utf-8") == "# boxes\n"
    assert registry.put(out, record_of("boxes")).digest == one.digest
    with pytest.raises(InputError, match="not empty"):
        registry.export("boxes", one.digest, out)


STEPS = st.lists(
    st.tuples(st.sampled_from(["promote", "rollback", "delete"]), st.integers(0, 2), st.integers(-1, 1)), max_size=12
)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["folder", "memory"]), steps=STEPS)
def test_an_alias_is_what_the_last_swap_that_won_made_it(kind: str, steps: list[tuple[str, int, int]]) -> None:
    """Against a model of three numbers: where it points, where it pointed, its generation."""
    with tempfile.TemporaryDirectory() as place:
        registry = open_registry(Path(place), f"memory://{secrets.token_hex(8)}" if kind == "memory" else None)
        digests = [
            registry.put(write_files(Path(place) / text, text), record_of("boxes")).digest for text in ("a", "b", "c")
        ]
        points, before, generation = None, None, 0
        for what, index, off in steps:
            try:
                if what == "promote":
                    registry.promote("champion", "boxes", digests[index], generation=generation + off)
                elif what == "rollback":
                    registry.rollback("champion", generation=generation + off)
                else:
                    registry.delete_alias("champion")
            except RunError as error:
                assert (error.kind, off != 0) == ("lost_swap", True)  # noqa: PT017
            except InputError as error:
                expected = {"no_previous": points is not None and before is None, "unknown_alias": points is None}
                assert expected[error.kind]  # noqa: PT017
            else:
                wanted = {"promote": digests[index], "rollback": before, "delete": None}[what]
                if wanted != points:
                    points, before, generation = wanted, points, generation + 1
            alias = registry.aliases().get("champion")
            assert (alias["digest"] if alias else None) == points
            if alias:
                assert alias["generation"] == generation
                assert (alias["previous"]["digest"] if alias["previous"] else None) == before


def _promote(storage: str, url: str | None, digest: str, generation: int, start: Any, answers: Any) -> None:
    registry = open_registry(Path(storage), url)
    start.wait()
    try:
        answers.put(registry.promote("champion", "boxes", digest, generation=generation)["digest"])
    except RunError as error:
        answers.put(error.kind)


@pytest.mark.parametrize("kind", ["folder", "once"])
def test_of_processes_that_race_for_a_generation_exactly_one_wins(kind: str, tmp_path: Path) -> None:
    url = f"once://{tmp_path / 'objects'}" if kind == "once" else None
    registry = open_registry(tmp_path / "runs", url)
    digests = [
        registry.put(write_files(tmp_path / str(index), str(index)), record_of("boxes")).digest for index in range(4)
    ]
    forked = multiprocessing.get_context("fork")
    for generation in range(5):
        present = registry.aliases().get("champion", {}).get("digest")
        contenders = [digest for digest in digests if digest != present]
        start, answers = forked.Barrier(len(contenders)), forked.SimpleQueue()
        racers = [
            forked.Process(target=_promote, args=(str(tmp_path / "runs"), url, digest, generation, start, answers))
            for digest in contenders
        ]
        for racer in racers:
            racer.start()
        said = [answers.get() for _ in racers]
        for racer in racers:
            racer.join()
        alias = registry.aliases()["champion"]
        assert alias["generation"] == generation + 1
        assert sorted(said) == sorted([alias["digest"], *["lost_swap"] * (len(contenders) - 1)])


def test_a_store_that_looks_before_it_creates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    registry = open_registry(tmp_path, f"local://{tmp_path / 'objects'}")
    with pytest.raises(InputError, match="could both win") as refused:
        registry.put(write_files(tmp_path / "a", "x"), record_of("boxes"))
    assert refused.value.kind == "bad_store"
    assert list((tmp_path / "objects").iterdir()) == []


@pytest.mark.parametrize(("url", "kind"), [("nothing://a/b", "bad_store"), ("s3://bucket/registry", "missing_package")])
def test_a_url_that_nothing_opens_is_bad_input(
    url: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = pytest.importorskip("fsspec.registry")
    # As where the extra is not installed, and has not been imported before.
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    with pytest.raises(InputError) as refused:
        open_registry(tmp_path, url)
    assert refused.value.kind == kind
    assert list(tmp_path.iterdir()) == []


def test_where_the_registry_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAY_REGISTRY", str(tmp_path / "other"))
    assert open_registry(tmp_path).place == str(tmp_path / "other")
    assert open_registry(tmp_path, f"file://{tmp_path / 'flag'}").place == str(tmp_path / "flag")
    monkeypatch.delenv("FTRAY_REGISTRY")
    assert open_registry(tmp_path).place == str(tmp_path / "registry")
