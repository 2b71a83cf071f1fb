"""An application's side of a migration: reads and writes that go to the right store at every moment.

::

    async with ReadRouter("shop", source=kv_pool, target=tables_pool, flags=openfeature_client) as reads:
        writes = WriteRouter("shop")

        async def put_in_kv() -> Token:
            async with kv_pool.acquire() as conn, conn.transaction():
                await carry_trace(conn)
                await conn.execute("insert into kv_store …")
                return await token_of(conn)

        token = await writes.write(kv=put_in_kv, tables=put_in_tables)
        products = await reads.read("product.list", kv=…, tables=…, token=token, key=str(user_id))

Needs asyncpg, the OpenFeature API and prometheus_client (extra ``migrate``), and nothing of Kafka.
"""

from replank.migrate.authority import NoAuthority, WritesElsewhere, WritesHeld
from replank.migrate.client.comparing import Ledger, ReadSettings
from replank.migrate.client.dualwriter import DualWriter
from replank.migrate.client.reads import Mode, NotAppliedYet, ReadRouter
from replank.migrate.client.token import InvalidToken, Token, token_of, token_of_records
from replank.migrate.client.trace import carry_trace
from replank.migrate.client.writes import WriteRouter

__all__ = [
    "DualWriter",
    "InvalidToken",
    "Ledger",
    "Mode",
    "NoAuthority",
    "NotAppliedYet",
    "ReadRouter",
    "ReadSettings",
    "Token",
    "WriteRouter",
    "WritesElsewhere",
    "WritesHeld",
    "carry_trace",
    "token_of",
    "token_of_records",
]
