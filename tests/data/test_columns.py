from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray.data.columns import column_text, parse_template
from ftray.errors import InputError

NAME = st.from_regex(r"[a-z][a-z0-9_ ]{0,6}[a-z]", fullmatch=True)


def test_names_are_filled_and_braces_escaped():
    template = parse_template('{{"q": "{user question}"}} {n}', key="prompt")
    assert template.names == ("user question", "n")
    assert template.fill({"user question": "why {x}", "n": "3"}) == '{"q": "why {x}"} 3'


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{ a }", "{a{b}}"])
def test_anything_but_a_plain_name_is_refused(template):
    with pytest.raises(InputError) as caught:
        parse_template(template, key="completion")
    assert (caught.value.kind, caught.value.path) == ("bad_template", "completion")


@given(st.lists(st.tuples(st.text(), NAME)), st.text())
def test_a_template_renders_as_str_format_does(parts, tail):
    source = "".join(f"{text.replace('{', '{{').replace('}', '}}')}{{{name}}}" for text, name in parts)
    source += tail.replace("{", "{{").replace("}", "}}")
    values = {name: f"<{name}>" for _, name in parts}
    assert parse_template(source, key="prompt").fill(values) == source.format(**values)


def test_values_that_are_not_text_are_json():
    assert [column_text(value) for value in ("a", 3, 1.5, True, ["ä"])] == ["a", "3", "1.5", "true", '["ä"]']
