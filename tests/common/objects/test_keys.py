from __future__ import annotations

import pytest
from pydantic import ValidationError

from replank.objects import InvalidKey, InvalidObject, ObjectStoreSettings
from replank.objects.model import check_key, metadata_headers
from replank.objects.upload import part_size_for


@pytest.mark.parametrize("key", ["a", "orders/2026/11/part-0001.parquet", "ü/ %25+&?#.txt", "a" * 255, "…" * 85])
def test_a_key_that_means_the_same_everywhere_is_taken(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "a/./b",
        "a\nb",
        "a\x00",
        "\x7f",
        "\udcff",
        "a" * 256,
        "/".join(["a" * 200] * 6),
    ],
)
def test_a_key_that_stores_understand_differently_is_refused(key: str) -> None:
    with pytest.raises(InvalidKey):
        check_key(key)


@pytest.mark.parametrize(
    "metadata",
    [
        {"Upper": "x"},
        {"": "x"},
        {"a_b": "x"},
        {"a": ""},
        {"a": " x"},
        {"a": "é"},
        {"a": "x\r\ny: z"},
        {"a": "x" * 2100},
    ],
)
def test_metadata_that_http_would_change_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidObject):
        metadata_headers(metadata)


def test_the_part_size_grows_with_the_object_until_s3s_limit() -> None:
    gib = 1024**3
    assert part_size_for(None, 8 * 1024**2) == 8 * 1024**2
    assert part_size_for(gib, 8 * 1024**2) == 8 * 1024**2
    assert part_size_for(1000 * gib, 8 * 1024**2) * 10_000 >= 1000 * gib
    with pytest.raises(InvalidObject):
        part_size_for(100_000 * gib, 8 * 1024**2)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9000", "s3://x", "http://", "http://key:secret@host", "http://host/bucket", "http://host?x=y"]
)
def test_a_url_that_is_no_endpoint_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ObjectStoreSettings.model_validate(
            {"url": url, "bucket": "archive", "access_key": "key", "secret_key": "very-secret"}
        )
    assert "very-secret" not in str(caught.value)


def test_settings_do_not_print_secrets() -> None:
    settings = ObjectStoreSettings.model_validate(
        {"url": "http://127.0.0.1:1", "bucket": "archive", "access_key": "the-key", "secret_key": "very-secret"}
    )
    assert "the-key" not in repr(settings)
    assert "very-secret" not in repr(settings)
