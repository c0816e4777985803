"""What a spelling stands for, whatever there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.errors import InputError
from ftray.registry.names import Record, resolve

NAMES = st.sampled_from(["aa", "bb", "cc", "dd"])
DIGESTS = st.sampled_from([f"{start}{end * 52}" for start in ("0" * 12, "0" * 11 + "1", "f" * 12) for end in "0af"])
TIMES = st.sampled_from([f"2026-01-0{day}T00:00:00.000Z" for day in range(1, 5)])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Record], dict[str, Record]]:
    """Adapters and aliases as a registry can hold them, names in common included."""
    keys = draw(st.lists(st.tuples(NAMES, DIGESTS), unique=True, max_size=8))
    adapters: list[Record] = [{"name": name, "digest": digest, "created_at": draw(TIMES)} for name, digest in keys]
    targets = st.tuples(NAMES, DIGESTS)
    aliases: dict[str, Record] = {
        alias: {"name": name, "digest": digest}
        for alias, (name, digest) in draw(st.dictionaries(st.sampled_from(["aa", "champion"]), targets)).items()
    }
    return adapters, aliases


@given(worlds(), st.sampled_from(["aa", "bb", "champion", "zz"]))
def test_a_name_is_an_alias_or_the_newest_adapter_or_refused(
    world: tuple[list[Record], dict[str, Record]], text: str
) -> None:
    adapters, aliases = world
    mine = [record for record in adapters if record["name"] == text]
    try:
        found = resolve(text, adapters, aliases)
    except InputError as error:
        there = {(record["name"], record["digest"]) for record in adapters}
        expected = {
            "ambiguous_name": bool(mine) and text in aliases,
            "unknown_adapter": not mine and text not in aliases,
            "dangling_alias": text in aliases and (aliases[text]["name"], aliases[text]["digest"]) not in there,
        }
        assert expected[error.kind]  # noqa: PT017
        return
    assert {"name": found.name, "digest": found.digest}.items() <= dict(found.record).items()
    if text in aliases:
        assert not mine
        assert (found.via_alias, found.name, found.digest) == (text, aliases[text]["name"], aliases[text]["digest"])
    else:
        assert found.via_alias is None
        assert found.record["created_at"] == max(record["created_at"] for record in mine)


@given(worlds(), NAMES, DIGESTS, st.integers(min_value=12, max_value=64))
def test_a_prefix_addresses_one_adapter_or_is_refused(
    world: tuple[list[Record], dict[str, Record]], name: str, digest: str, length: int
) -> None:
    adapters, aliases = world
    prefix = digest[:length]
    matching = [r for r in adapters if r["name"] == name and r["digest"].startswith(prefix)]
    try:
        found = resolve(f"{name}@{prefix}", adapters, aliases)
    except InputError:
        shared = name in aliases
        assert shared or len(matching) != 1
        return
    assert [found.record] == matching
    assert found.via_alias is None
    assert resolve(f"{name}@{found.digest}", reversed(adapters), aliases) == found


@given(st.text(max_size=70))
def test_any_text_is_resolved_or_refused(text: str) -> None:
    adapters = [{"name": "aa", "digest": "0" * 64, "created_at": "2026-01-01T00:00:00.000Z"}]
    try:
        assert resolve(text, adapters, {}).name == "aa"
    except InputError as error:
        assert error.kind in ("bad_name", "bad_reference", "unknown_adapter")  # noqa: PT017


@pytest.mark.parametrize("prefix", ["", "0" * 11, "0" * 65, "G" * 12, "0" * 11 + "A", "00000000000\n"])
def test_what_is_no_digest_is_refused(prefix: str) -> None:
    adapters = [{"name": "aa", "digest": "0" * 64, "created_at": "2026-01-01T00:00:00.000Z"}]
    with pytest.raises(InputError) as refused:
        resolve(f"aa@{prefix}", adapters, {})
    assert refused.value.kind == "bad_reference"


def test_an_alias_has_no_digest() -> None:
    aliases = {"champion": {"name": "aa", "digest": "0" * 64}}
    with pytest.raises(InputError, match="an alias has none"):
        resolve(f"champion@{'0' * 12}", [], aliases)
