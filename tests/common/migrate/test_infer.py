"""Proposing a mapping from a sample: it is valid, it takes the sample as it is, and it says what looks dirty."""

from __future__ import annotations

import json
import random
from typing import Any

import asyncpg
import pytest

from replank.migrate.dryrun import dry_run
from replank.migrate.infer import Proposal, infer
from replank.migrate.mapping import Column


def shop(orders: int = 400) -> list[tuple[str, Any]]:
    chance = random.Random(7)
    sample: list[tuple[str, Any]] = [
        (f"client:c{n}", {"id": f"c{n}", "name": f"name {n}", "address": {"city": "Lisbon", "zip": "1100"}})
        for n in range(40)
    ]
    sample += [(f"product:{n}", {"name": f"thing {n}", "price": n + 0.25, "tags": ["a", "b"]}) for n in range(1, 61)]
    for n in range(orders):
        order: dict[str, Any] = {
            "clientId": f"c{chance.randrange(40)}",
            "total": 12.25,
            "createdAt": "2024-01-02T03:04:05.123Z",
            "paidAt": 1700000000000 + n,
            "day": "2024-01-02",
            "token": f"00000000-0000-0000-0000-{n:012}",
            "paid": bool(n % 2),
            "lines": [{"productId": chance.randrange(1, 61), "qty": 1 + n % 3}] * (n % 3),
            "discount": None if n % 4 else 5,
        }
        sample.append((f"order:{n}", order))
    sample += [(f"excluded:c{n % 40}:{n % 60 + 1}", {"why": "x"}) for n in range(120)]
    return sample


def column(proposal: Proposal, entity: str, name: str, child: str | None = None) -> Column:
    found = proposal.mapping.entities[entity]
    return found.children[child].columns[name] if child else found.columns[name]


def test_types_keys_children_and_references_are_proposed() -> None:
    proposal = infer(shop(), name="shop")
    mapping = proposal.mapping
    assert {name: entity.key for name, entity in mapping.entities.items()} == {
        "client": "client:{id}",
        "order": "order:{id}",
        "product": "product:{id}",
        "excluded": "excluded:{client_id}:{id}",
    }
    types = {name: (c.type, c.represented) for name, c in mapping.entities["order"].columns.items()}
    assert types == {
        "id": ("text", ""),
        "client_id": ("text", ""),
        "total": ("numeric(12,2)", "number"),
        "created_at": ("timestamptz", "iso8601_ms"),
        "paid_at": ("timestamptz", "epoch_ms"),
        "day": ("date", ""),
        "token": ("uuid", ""),
        "paid": ("boolean", ""),
        "discount": ("integer", "number"),
    }
    assert column(proposal, "order", "client_id").references == "client"
    assert not column(proposal, "order", "client_id").nullable
    assert column(proposal, "order", "discount").nullable
    assert column(proposal, "client", "address_city").path == ("address", "city")
    # Others refer to products by number, so that their keys are numbers, too.
    assert column(proposal, "product", "id").type == "bigint"
    assert column(proposal, "order", "product_id", "lines").references == "product"
    assert column(proposal, "product", "tags").type == "jsonb"
    assert column(proposal, "excluded", "client_id").references == "client"


async def test_a_clean_sample_is_taken_as_it_is(pool: asyncpg.Pool) -> None:
    sample = shop()
    proposal = infer(sample)
    async with pool.acquire() as conn:
        found = await dry_run(conn, proposal.mapping, [(key, json.dumps(value)) for key, value in sample])
    assert found.rejects == ()
    assert (found.exact, found.broken) == (len(sample), ())


def test_what_looks_dirty_is_counted_and_never_quoted() -> None:
    sample = shop()
    for key, value in sample:
        if key.endswith("7") and key.startswith("order:"):
            value["total"] = "secret 12.25"
        if key.endswith("9") and key.startswith("order:"):
            value["day"] = "02.01.2024"
        if key.startswith("client:c1"):
            value["name"] = " padded "
    sample += [("loose", {}), ("client:c1:settings", {"theme": "dark"})]
    proposal = infer(sample)
    findings = {(finding.entity, finding.path): finding.what for finding in proposal.findings}
    assert findings["order", "total"] == "dirty, and rejected unless lenient: string 40"
    assert findings["order", "day"] == "dirty, and rejected unless lenient: another date 40"
    assert findings["client", "name"].startswith("blanks around it in 11")
    assert findings["client", ""] == "the key has another number of parts: perhaps another entity"
    assert findings["", ""] == "keys or values that no entity was made of"
    assert column(proposal, "order", "total").type == "numeric(12,2)"
    assert "secret" not in proposal.text
    assert "padded" not in proposal.text


def test_a_field_that_repeats_the_key_stays_in_rest() -> None:
    proposal = infer(shop())
    assert list(proposal.mapping.entities["client"].columns) == ["id", "name", "address_city", "address_zip"]


def test_small_numbers_alone_make_no_reference() -> None:
    sample: list[tuple[str, Any]] = [(f"page:{n}", {"title": "x"}) for n in range(50)]
    sample += [(f"vote:{n}", {"stars": n % 6, "pageId": str(n % 50)}) for n in range(200)]
    votes = infer(sample).mapping.entities["vote"].columns
    assert votes["stars"].references is None
    assert votes["page_id"].references == "page"


def test_entities_never_reference_each_other_in_a_circle() -> None:
    sample = [(f"a:x{n}", {"bId": f"y{n % 20}"}) for n in range(30)] + [
        (f"b:y{n}", {"aId": f"x{n}"}) for n in range(20)
    ]
    entities = infer(sample).mapping.entities
    references = {c.references for entity in entities.values() for c in entity.columns.values()} - {None}
    assert len(references) == 1


def test_longer_prefixes_tell_entities_apart() -> None:
    sample: list[tuple[str, Any]] = [(f"app:setting:{n}", {"v": 1}) for n in range(20)]
    sample += [(f"app:user:{n}", {"w": "x"}) for n in range(20)]
    assert {name: e.key for name, e in infer(sample).mapping.entities.items()} == {
        "setting": "app:setting:{id}",
        "user": "app:user:{id}",
    }


def test_odd_names_make_a_mapping_all_the_same() -> None:
    value = {
        "a.b": 1,
        "null": "x",
        "on": True,
        "Ünï": "x",
        "": "y",
        "replank_x": 1,
        "A": 1,
        "a": 2,
        "order": {"group": "g"},
    }
    proposal = infer([(f"kind:{n}", value) for n in range(5)])
    paths = {c.path for c in proposal.mapping.entities["kind"].columns.values() if c.path is not None}
    assert ("a.b",) in paths
    assert ("order", "group") in paths


def test_a_sample_without_records_is_refused() -> None:
    with pytest.raises(ValueError, match="no record of the sample"):
        infer([("plain", {}), ("x:1", [1])])
