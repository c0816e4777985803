"""How an adapter is asked: as it was trained, or as its base, where the record says that it was the base's own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftray.model.base import load_config, load_tokenizer
from ftray.quickstart.pretrain import tiny_base
from ftray.serve.asking import Ask
from ftray.serve.engine.prompts import Prompts

CHAT = ({"role": "user", "content": "the sea"},)
JINJA = "{% for m in messages %}{{ 'Q ' + m.content }}{% endfor %}{% if add_generation_prompt %}{{ ' A' }}{% endif %}"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    folder: Path = tmp_path_factory.mktemp("base")
    tiny_base(folder, seed=0)
    vocabulary = load_config(str(folder)).vocab_size
    return Prompts(load_tokenizer(str(folder)), vocabulary=vocabulary, ends=None, positions=64)


def tokens(prompts: Prompts, record: dict[str, Any]) -> list[int]:
    ask = Ask(request_id="one", messages=CHAT)
    return list(prompts.read(ask, prompts.format_of(record)).tokens)


@pytest.mark.parametrize(
    "record",
    [{"template": {"name": "tokenizer", "source": None}}, {"template": None}, {}],
    ids=["the tokenizer's own", "plain texts", "nothing known"],
)
def test_what_has_no_template_of_its_own_is_asked_as_its_base(prompts: Prompts, record: dict[str, Any]) -> None:
    as_base = list(prompts.read(Ask(request_id="one", messages=CHAT), prompts.format).tokens)
    assert tokens(prompts, record) == as_base


def test_a_template_of_its_own_is_used(prompts: Prompts) -> None:
    own = {"template": {"name": "mine.jinja", "source": JINJA}}
    assert tokens(prompts, own) != tokens(prompts, {})
    as_text = prompts.read(Ask(request_id="one", prompt="Q the sea A"), prompts.format)
    assert tokens(prompts, own) == [token for token in as_text.tokens if token not in (0, 1)]
