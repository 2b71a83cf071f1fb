"""Key patterns: one reading of a key, in Python and in Postgres alike, and an exact answer to "can both match?"."""

from __future__ import annotations

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replank.migrate import patterns

_CHARACTERS = "ab:/{}.é'\\"
_NAMES = ("one", "two", "three")


@st.composite
def pattern_texts(draw: st.DrawFn) -> str:
    literals = st.text(_CHARACTERS, min_size=1, max_size=3).map(lambda text: text.replace("{", "{{").replace("}", "}}"))
    parts = [draw(literals)] if draw(st.booleans()) else []
    for name in _NAMES[: draw(st.integers(0 if parts else 1, 3))]:
        parts.append(f"{{{name}}}")
        parts.append(draw(literals))
    if len(parts) > 1 and draw(st.booleans()):
        parts.pop()
    return "".join(parts)


def captures(pattern: patterns.Pattern) -> st.SearchStrategy[dict[str, str]]:
    alphabet = _CHARACTERS + "zü \n"
    return st.fixed_dictionaries(
        {
            name: st.text("".join(c for c in alphabet if c != pattern.stop(name)), min_size=1, max_size=4)
            for name in pattern.captures
        }
    )


@given(st.data())
def test_what_is_built_from_captures_is_read_back_to_them(data: st.DataObject) -> None:
    pattern = patterns.parse(data.draw(pattern_texts()))
    values = data.draw(captures(pattern))
    assert pattern.match(pattern.build(values)) == values


@given(pattern_texts(), pattern_texts())
def test_an_example_of_an_overlap_is_matched_by_both(first: str, second: str) -> None:
    one, other = patterns.parse(first), patterns.parse(second)
    key = one.common_key(other)
    if key is not None:
        assert one.match(key) is not None
        assert other.match(key) is not None


@given(pattern_texts(), pattern_texts(), st.data())
def test_patterns_without_an_overlap_share_no_key(first: str, second: str, data: st.DataObject) -> None:
    one, other = patterns.parse(first), patterns.parse(second)
    key = one.build(data.draw(captures(one)))
    if other.match(key) is not None:
        assert one.common_key(other) is not None


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        ("order:{id}", "order:{client}:{id}", True),
        ("order:{id}", "orders:{id}", False),
        ("{kind}:{id}", "order:{id}", True),
        ("a:{x}:b", "a:{y}:c", False),
        ("a{x}", "{y}b", True),
        ("{x}:", "{y}", True),
        ("a:{x}:{y}", "a:{x}:{y}:{z}", True),
        ("settings", "settings", True),
        ("settings", "setting{x}", True),
        ("x:{a}-{b}", "x:{a}+{b}", True),
        ("{a}:1", "{a}:2", False),
    ],
)
def test_overlaps(first: str, second: str, overlap: bool) -> None:
    assert (patterns.parse(first).common_key(patterns.parse(second)) is not None) is overlap


@pytest.mark.parametrize("text", ["", "{a}{b}", "{a}:{a}", "{A}", "{}", "a{", "a}b"])
def test_a_pattern_that_nothing_could_be_read_with_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        patterns.parse(text)


async def test_postgres_reads_keys_as_python_does(pool: asyncpg.Pool) -> None:
    texts = ["order:{id}", "{one}:x", "a.{one}.{two}", "{one}'{two}\\{three}", "[{one}]", "{one}", "fixed", "{{{one}}}",
             "é{one}:-"]  # fmt: skip
    keys = ["order:1", "order:", "order:a:b", "b:x", ":x", "a.b.c", "a.b.", "a.b.c.d", "x'y\\z", "'\\", "[q]", "[]",
            "fixed", "{k}", "éü:-", "é:-", "new\nline", "a.\n.c", "1'2\\3'4\\5"]  # fmt: skip
    for text in texts:
        pattern = patterns.parse(text)
        found = await pool.fetch(f"select k, {pattern.matches_sql('k')} from unnest($1::text[]) as k", keys)
        assert {row[0]: row[1] for row in found} == {key: pattern.match(key) is not None for key in keys}, text
        columns = "".join(f", {pattern.capture_sql(name, 'k')}" for name in pattern.captures)
        built = pattern.build_sql({name: pattern.capture_sql(name, "k") for name in pattern.captures})
        matching = f"unnest($1::text[]) as k where {pattern.matches_sql('k')}"
        rows = await pool.fetch(f"select k, {built}{columns} from {matching}", keys)
        for key, again, *values in rows:
            assert again == key
            assert dict(zip(pattern.captures, values, strict=True)) == pattern.match(key)
