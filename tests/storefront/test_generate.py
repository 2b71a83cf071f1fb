"""The generated shop is the same every time, is made of what it says, and is dirty where it says."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from replank_storefront.generate import LARGEST_CLIENT, PRODUCTS_PER_CATALOG, Dirt, Planted, Sizes, Verdict, records
from replank_storefront.model import Unreadable
from replank_storefront.records import Json, dump, read_order, read_product, read_site


def shop(sizes: Sizes, seed: int = 1) -> tuple[dict[str, Json], Planted]:
    planted = Planted()
    made = list(records(sizes, seed, planted))
    found = dict(made)
    assert len(found) == len(made), "a key comes twice"
    return found, planted


def test_the_same_seed_makes_the_same_shop_and_another_seed_another() -> None:
    sizes = Sizes.of(5_000)
    first, second, other = shop(sizes, 1), shop(sizes, 1), shop(sizes, 2)
    assert first == second
    assert first[0] != other[0]


@pytest.mark.parametrize("size", [1_000, 4_321, 20_000])
def test_there_are_as_many_records_as_were_asked_for(size: int) -> None:
    sizes = Sizes.of(size)
    found, _ = shop(sizes)
    assert len(found) == sizes.total == size
    entities = Counter(key.split(":")[0] for key in found)
    assert entities["product"] == sizes.products
    assert entities["order"] == sizes.orders
    assert entities["event"] == sizes.events


def test_the_largest_client_has_as_many_orders_as_were_asked_for() -> None:
    found, _ = shop(Sizes.of(10_000, largest_client_orders=1_234))
    assert sum(key.startswith(f"order:{LARGEST_CLIENT}:") for key in found) == 1_234


def test_a_full_catalog_has_a_thousand_products() -> None:
    found, _ = shop(Sizes.of(20_000))
    assert PRODUCTS_PER_CATALOG == 1_000
    listed = found["catalog:k00001"]["productIds"]
    assert len(listed) == 1_000
    assert all(found[f"product:{product}"].get("catalogId") == "k00001" for product in listed)


def test_one_record_in_two_hundred_is_dirty_in_every_way_there_is() -> None:
    found, planted = shop(Sizes.of(50_000))
    dirty = planted.of(Verdict.REJECTED) + planted.of(Verdict.DANGLING) + planted.of(Verdict.CLEANED)
    assert len(set(dirty)) == len(dirty)
    assert set(dirty) <= set(found)
    assert 0.004 < len(dirty) / len(found) < 0.006
    assert all(planted.keys[kind] for kind in Dirt)


def test_a_shop_of_the_smallest_size_has_every_kind_of_dirt_in_what_it_has_enough_of() -> None:
    _, planted = shop(Sizes.of(1_000))
    assert all(planted.keys[kind] for kind in Dirt)


def test_what_is_not_dirty_can_be_read_and_names_what_is_there() -> None:
    found, planted = shop(Sizes.of(20_000))
    dirty = {key for keys in planted.keys.values() for key in keys}
    unreadable = set()
    for key, value in found.items():
        reads = {"site": read_site, "product": read_product, "order": read_order}.get(key.split(":")[0])
        if reads is None:
            continue
        try:
            thing = reads(key, dump(value))
        except Unreadable:
            unreadable.add(key)
            continue
        if key not in dirty and key.startswith("order:"):
            assert found[f"site:{value['siteId']}"]["clientId"] == thing.client_id  # type: ignore[attr-defined]
    rejected = set(planted.of(Verdict.REJECTED))
    assert unreadable == {key for key in rejected if key.split(":")[0] in {"site", "product", "order"}}


def test_a_shop_is_made_as_it_is_taken() -> None:
    assert len(list(islice(records(Sizes.of(100_000_000), 1, Planted()), 1_000))) == 1_000


@pytest.mark.parametrize(("size", "largest"), [(999, None), (1_000, 100_000), (1_000, -1)])
def test_a_shop_that_cannot_be_is_refused(size: int, largest: int | None) -> None:
    with pytest.raises(ValueError, match=r"shop|cannot have"):
        Sizes.of(size, largest_client_orders=largest)
