"""The vault over HTTP, on a real database and a real object store; auth-cache is played by the test."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from replank.contracts.schema import SchemaDeleted, SchemaOwnerChanged, SchemaRestored, SchemaVersionPublished
from replank.testing.services import Issuer, Rights, appended
from tests.schema.vault.served import (
    ADA,
    BEN,
    CUSTOMER,
    content_digest,
    problem,
    publish,
    sha256_of,
    text_of,
    upload,
)


@pytest.fixture
def as_ben(issuer_of_tokens: Issuer) -> dict[str, str]:
    return {"authorization": f"Bearer {issuer_of_tokens.token(BEN)}"}


# --- publishing ---


async def test_an_uploaded_schema_is_found_with_its_facts_and_its_content_is_what_was_sent(
    client: httpx.AsyncClient, database: asyncpg.Pool
) -> None:
    answer = await upload(
        client, "shop/customer", tag=["crm", "gdpr"], description="Who buys", metadata='{"team": "sales"}'
    )
    assert answer.status_code == 201, answer.text
    shown = answer.json()
    assert (shown["kind"], shown["field_count"], shown["version"], shown["owner"]) == ("schema", 4, 1, ADA)
    assert (shown["tags"], shown["metadata"]) == (["crm", "gdpr"], {"team": "sales"})
    assert shown["sha256"] == sha256_of(text_of(CUSTOMER))
    assert answer.headers["location"] == f"/schemavault/{shown['id']}"

    found = await client.get(answer.headers["location"])
    assert found.json() == shown
    assert found.headers["etag"] == '"1"'
    content = await client.get(f"/schemavault/{shown['id']}/content", headers={"accept-encoding": "identity"})
    assert content.content == text_of(CUSTOMER)
    assert content.headers["content-type"] == "application/schema+json"

    async with database.acquire() as conn:
        ((key, event),) = await appended(conn)
    assert isinstance(event, SchemaVersionPublished)
    assert key == shown["id"]
    assert (event.mode, event.name, event.version, event.previous, event.published_by) == (
        "standard",
        "shop/customer",
        1,
        None,
        ADA,
    )


async def test_a_schema_of_one_mode_is_unknown_in_the_other(client: httpx.AsyncClient) -> None:
    shown = (await upload(client, "customer", at="/pro/schemas")).json()
    problem(await client.get(f"/schemavault/{shown['id']}"), 404, "schema-not-found")
    assert (await client.get("/schemavault")).json()["items"] == []
    problem(await client.get("/schemavault/by-name/customer"), 404, "schema-not-found")
    assert (await client.get("/pro/schemas/by-name/customer")).json()["id"] == shown["id"]
    # The same content is sent to the other mode again: nothing is shared.
    missing = await client.post("/schemavault/blobs/missing", json={"sha256": [shown["sha256"]]})
    assert missing.json() == {"missing": [shown["sha256"]]}


async def test_sending_the_same_again_is_no_clash_but_another_content_or_sender_is(
    client: httpx.AsyncClient, rights: Rights, as_ben: dict[str, str], database: asyncpg.Pool
) -> None:
    first = await upload(client, "customer")
    again = await upload(client, "customer")
    assert (again.status_code, again.json()) == (200, first.json())
    problem(await upload(client, "customer", {"type": "string"}), 409, "name-taken")
    rights.allowed.add((BEN, "publish", "vault:standard"))
    client.headers.update(as_ben)
    problem(await upload(client, "customer"), 409, "name-taken")
    assert await database.fetchval("select count(*) from replank_outbox.event") == 1


async def test_a_known_content_is_not_sent_again(client: httpx.AsyncClient) -> None:
    text = text_of({"a": 1})
    sha256 = sha256_of(text)
    query = {"sha256": [sha256]}
    assert (await client.post("/schemavault/blobs/missing", json=query)).json() == {"missing": [sha256]}
    json_body = {"content-type": "application/json"}
    sent = await client.put(f"/schemavault/blobs/{sha256}", content=text, headers=json_body)
    assert (sent.status_code, sent.json()["size"]) == (201, len(text))
    assert (await client.post("/schemavault/blobs/missing", json=query)).json() == {"missing": []}
    # Known: answered without its body being looked at.
    known = await client.put(f"/schemavault/blobs/{sha256}", content=b"!", headers=json_body)
    assert known.status_code == 200
    created = await client.post("/schemavault", json={"name": "a", "sha256": sha256, "tags": ["t"]})
    assert created.status_code == 201, created.text
    assert (await client.get(f"/schemavault/{created.json()['id']}/content")).json() == {"a": 1}


# --- versions ---


async def test_a_new_version_needs_the_revision_that_its_sender_saw(
    client: httpx.AsyncClient, database: asyncpg.Pool
) -> None:
    first = (await upload(client, "customer")).json()
    wider = {**CUSTOMER, "properties": {**CUSTOMER["properties"], "phone": {"type": "string"}}}
    second = await publish(client, first, wider, note="phone")
    assert second.status_code == 201, second.text
    assert (second.json()["version"], second.json()["field_count"]) == (2, 5)
    problem(await publish(client, first, {"type": "string"}), 412, "revision-changed")
    url = f"/schemavault/{first['id']}/versions"
    problem(
        await client.post(url, content=b"{}", headers={"content-type": "application/json"}),
        428,
        "precondition-required",
    )
    listed = (await client.get(url)).json()["items"]
    assert [(version["version"], version["note"]) for version in listed] == [(2, "phone"), (1, "")]
    for number, content in ((1, CUSTOMER), (2, wider)):
        assert (await client.get(f"{url}/{number}/content")).json() == content
    # The same content once more is no version, whatever revision is named: its answer may have been lost.
    same = await publish(client, first, wider)
    assert (same.status_code, same.json()["version"]) == (200, 2)
    async with database.acquire() as conn:
        events = [event for _, event in await appended(conn)]
    assert [(event.version, event.previous) for event in events if isinstance(event, SchemaVersionPublished)] == [
        (1, None),
        (2, 1),
    ]


async def test_the_difference_of_two_versions_comes_with_a_verdict(client: httpx.AsyncClient) -> None:
    first = (await upload(client, "customer")).json()
    stricter = {**CUSTOMER, "required": ["customerId", "address"]}
    await publish(client, first, stricter)
    found = await client.get(f"/schemavault/{first['id']}/diff", params={"from": 1, "to": 2})
    assert found.status_code == 200, found.text
    shown = found.json()
    assert (shown["added"], shown["removed"], shown["changed"]) == (["/required/1"], [], [])
    assert (shown["compatibility"]["backward"], shown["compatibility"]["forward"]) == (False, True)
    assert shown["compatibility"]["reasons"]
    versions = (await client.get(f"/schemavault/{first['id']}/versions")).json()["items"]
    assert [(line["backward"], line["forward"]) for line in versions] == [(False, True), (None, None)]


async def test_validity_is_checked_when_asked_and_never_forced(client: httpx.AsyncClient) -> None:
    broken = {**CUSTOMER, "properties": {"a": {"type": "strin"}}, "minimum": "high"}
    shown = (await upload(client, "broken", broken)).json()
    checked = (await client.post(f"/schemavault/{shown['id']}/versions/1/validate")).json()
    assert not checked["valid"]
    assert {place["path"] for place in checked["problems"]} == {"/properties/a/type", "/minimum"}
    good = (await upload(client, "good")).json()
    checked = (await client.post(f"/schemavault/{good['id']}/versions/1/validate")).json()
    assert checked == {"valid": True, "draft": CUSTOMER["$schema"], "problems": []}


# --- reading ---


async def test_content_is_served_in_ranges_by_entity_tag_and_as_it_is_stored(client: httpx.AsyncClient) -> None:
    text = json.dumps([str(uuid4()) for _ in range(60_000)]).encode()
    assert len(text) > 2 * 1024 * 1024
    shown = (await upload(client, "ids", text)).json()
    url = f"/schemavault/{shown['id']}/content"
    plain = {"accept-encoding": "identity"}
    whole = await client.get(url, headers=plain)
    assert whole.content == text
    assert (whole.headers["etag"], whole.headers["content-length"]) == (f'"{shown["sha256"]}"', str(len(text)))
    assert whole.headers["repr-digest"] == content_digest(text)
    for asked, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=1048570-1048590", 1048570, 1048590),
        ("bytes=2000000-", 2000000, len(text) - 1),
        ("bytes=-17", len(text) - 17, len(text) - 1),
        ("bytes=5-99999999", 5, len(text) - 1),
    ):
        part = await client.get(url, headers={"range": asked})
        assert part.status_code == 206, asked
        assert part.content == text[first : last + 1], asked
        assert part.headers["content-range"] == f"bytes {first}-{last}/{len(text)}"
    problem(await client.get(url, headers={"range": f"bytes={len(text)}-"}), 416, "range-not-satisfiable")
    # What is no single range is answered with everything, as RFC 9110 has it; so is a range of something else.
    for ignored in ({"range": "bytes=0-1,4-5"}, {"range": "bytes=9-3"}, {"range": "bytes=0-1", "if-range": '"x"'}):
        assert (await client.get(url, headers={**plain, **ignored})).status_code == 200
    assert (await client.get(url, headers={**plain, "if-none-match": whole.headers["etag"]})).status_code == 304
    compressed = await client.get(url, headers={"accept-encoding": "zstd"})
    assert compressed.headers["content-encoding"] == "zstd"
    assert int(compressed.headers["content-length"]) < len(text)
    assert compressed.content == text  # the client decompresses
    assert compressed.headers["etag"] != whole.headers["etag"]
    head = await client.head(url, headers=plain)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(text)), b"")


async def test_a_listing_pages_filters_sorts_and_searches_without_reading_contents(client: httpx.AsyncClient) -> None:
    for number in range(7):
        properties: dict[str, Any] = {f"field{index}": {} for index in range(number)}
        answer = await upload(
            client,
            f"list/{number}",
            {"$schema": CUSTOMER["$schema"], "type": "object", "properties": properties},
            tag=["even" if number % 2 == 0 else "odd", "all"],
            description="about invoices" if number == 3 else "",
            metadata=json.dumps({"team": {"name": "ab"[number % 2]}}),
        )
        assert answer.status_code == 201, answer.text

    async def names(**query: Any) -> list[str]:
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = await client.get(
                "/schemavault", params={**query, "limit": 2, **({"cursor": cursor} if cursor else {})}
            )
            assert page.status_code == 200, page.text
            found += [item["name"].removeprefix("list/") for item in page.json()["items"]]
            cursor = page.json()["next"]
            if cursor is None:
                return found

    everything = list("0123456")
    assert await names() == everything
    for sort in ("name", "created_at", "updated_at", "field_count", "size"):
        assert await names(sort=sort) == everything, sort
        assert await names(sort=f"-{sort}") == everything[::-1], sort
    assert await names(tag=["odd", "all"]) == ["1", "3", "5"]
    assert await names(metadata='{"team": {"name": "a"}}') == ["0", "2", "4", "6"]
    assert await names(q="invoice") == ["3"]
    assert await names(q="field5") == ["6"]
    assert await names(name="list/2") == ["2"]
    assert await names(owner=BEN) == []
    assert await names(kind="document") == []
    problem(await client.get("/schemavault", params={"cursor": "x"}), 400, "invalid-cursor")
    problem(await client.get("/schemavault", params={"sort": "owner"}), 422, "invalid-request")
    assert (await client.get("/schemavault", params={"q": "customer' ) | ("})).status_code == 200


async def test_a_field_is_found_by_its_name_and_by_its_parts(client: httpx.AsyncClient) -> None:
    await upload(client, "customer")
    for words in ("customerId", "customer", "street", "zip -gdpr", '"address street"'):
        found = (await client.get("/schemavault", params={"q": words})).json()["items"]
        assert [item["name"] for item in found] == ["customer"], words
    assert (await client.get("/schemavault", params={"q": "zip -street"})).json()["items"] == []


# --- changing, deleting ---


async def test_what_is_said_of_a_schema_changes_by_revision_and_a_new_owner_is_told(
    client: httpx.AsyncClient, database: asyncpg.Pool
) -> None:
    shown = (await upload(client, "customer", tag=["a"])).json()
    url = f"/schemavault/{shown['id']}"
    changed = await client.patch(url, json={"owner": BEN, "tags": ["b"]}, headers={"if-match": '"1"'})
    assert changed.status_code == 200, changed.text
    assert (changed.json()["owner"], changed.json()["tags"], changed.headers["etag"]) == (BEN, ["b"], '"2"')
    problem(await client.patch(url, json={"tags": []}, headers={"if-match": '"1"'}), 412, "revision-changed")
    problem(await client.patch(url, json={"tags": []}), 428, "precondition-required")
    problem(await client.patch(url, json={"tags": []}, headers={"if-match": "yes"}), 400, "if-match-malformed")
    assert (await client.get("/schemavault", params={"q": "street"})).json()["items"], "the fields are still found"
    async with database.acquire() as conn:
        told = [event for _, event in await appended(conn)]
    assert isinstance(told[-1], SchemaOwnerChanged)
    assert (told[-1].owner, told[-1].previous_owner) == (BEN, ADA)


async def test_a_deleted_schema_leaves_its_name_and_comes_back_with_its_versions(
    client: httpx.AsyncClient, database: asyncpg.Pool
) -> None:
    first = (await upload(client, "customer")).json()
    url = f"/schemavault/{first['id']}"
    deleted = await client.delete(url)
    assert (deleted.status_code, deleted.json()["status"]) == (200, "deleted")
    problem(await client.delete(url), 409, "not-active")
    problem(await publish(client, deleted.json(), {"a": 1}), 409, "not-active")
    assert (await client.get("/schemavault")).json()["items"] == []
    assert len((await client.get("/schemavault", params={"status": "deleted"})).json()["items"]) == 1
    second = (await upload(client, "customer", {"type": "object"})).json()
    assert second["id"] != first["id"]
    problem(await client.post(f"{url}/restore"), 409, "name-taken")
    await client.delete(f"/schemavault/{second['id']}")
    restored = await client.post(f"{url}/restore")
    assert (restored.status_code, restored.json()["status"]) == (200, "active")
    assert (await client.get(f"{url}/content")).json() == CUSTOMER
    problem(await client.post(f"{url}/restore"), 409, "not-active")
    async with database.acquire() as conn:
        told = [type(event) for key, event in await appended(conn) if key == first["id"]]
    assert told == [SchemaVersionPublished, SchemaDeleted, SchemaRestored]


async def test_what_is_used_is_deleted_and_broken_by_force_alone_and_the_answer_says_who_would_break(
    client: httpx.AsyncClient, database: asyncpg.Pool
) -> None:
    shown = (await upload(client, "customer")).json()
    await database.execute(
        "insert into vault_standard.consumer values ('customer', 'billing', 5, now(), now()),"
        " ('customer', 'long-gone', 5, now() - interval '1 year', now() - interval '1 year')"
    )
    url = f"/schemavault/{shown['id']}"
    assert [line["consumer"] for line in (await client.get(f"{url}/consumers")).json()["consumers"]] == ["billing"]
    refused = problem(await client.delete(url), 409, "still-used")
    assert [line["consumer"] for line in refused["consumers"]] == ["billing"]
    # They can go on reading this one,
    stricter = (await publish(client, shown, {**CUSTOMER, "required": ["customerId", "address"]})).json()
    assert stricter["version"] == 2
    # and not this one.
    refused = problem(await publish(client, stricter, {**CUSTOMER, "required": []}), 409, "still-used")
    assert [line["consumer"] for line in refused["consumers"]] == ["billing"]
    assert refused["reasons"]
    # Neither can they be told that they can read what is no schema any more.
    refused = problem(await publish(client, stricter, [1, 2, 3]), 409, "still-used")
    assert refused["reasons"]
    forced = await publish(client, stricter, {**CUSTOMER, "required": []}, force=True)
    assert (forced.status_code, forced.json()["version"]) == (201, 3)
    assert (await client.delete(url, params={"force": True})).status_code == 200


async def test_many_are_changed_at_once_each_by_itself(client: httpx.AsyncClient) -> None:
    ids = [(await upload(client, f"bulk{number}", {"number": number})).json()["id"] for number in range(3)]
    stranger = str(uuid4())
    tagged = await client.post("/schemavault/bulk", json={"action": "tag", "ids": [*ids, stranger], "tags": ["old"]})
    assert tagged.status_code == 200, tagged.text
    assert tagged.json()["failed"] == 1
    assert {result["id"] for result in tagged.json()["results"] if not result["ok"]} == {stranger}
    assert len((await client.get("/schemavault", params={"tag": "old"})).json()["items"]) == 3
    deleted = await client.post("/schemavault/bulk", json={"action": "delete", "ids": ids})
    assert deleted.json()["failed"] == 0
    restored = await client.post("/schemavault/bulk", json={"action": "restore", "ids": ids[:2]})
    assert restored.json()["failed"] == 0
    assert len((await client.get("/schemavault")).json()["items"]) == 2


# --- rights ---


async def test_rights_are_of_one_mode_and_one_kind(
    client: httpx.AsyncClient, rights: Rights, as_ben: dict[str, str]
) -> None:
    shown = (await upload(client, "customer")).json()
    url = f"/schemavault/{shown['id']}"
    client.headers.update(as_ben)
    problem(await client.get("/schemavault"), 403, "forbidden")
    problem(await client.get(f"{url}/content"), 403, "forbidden")
    rights.allowed.add((BEN, "view", "vault:standard"))
    assert (await client.get("/schemavault")).status_code == 200
    problem(await client.get("/pro/schemas"), 403, "forbidden")
    problem(await upload(client, "mine"), 403, "forbidden")
    problem(await client.delete(url), 403, "forbidden")
    rights.allowed.add((BEN, "publish", "vault:standard"))
    assert (await upload(client, "mine")).status_code == 201
    # Who may publish may not publish over others.
    problem(await publish(client, shown, {"a": 1}), 403, "forbidden")
    rights.allowed.add((BEN, "owner", f"schema:standard.{shown['id']}"))
    assert (await publish(client, shown, {"a": 1})).status_code == 201
    problem(await client.get(f"/schemavault/{UUID(int=0)}"), 404, "schema-not-found")
