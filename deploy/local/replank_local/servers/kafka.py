"""One Kafka broker that is its own controller (KRaft)."""

from __future__ import annotations

import asyncio
import base64
import uuid
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from replank_local import processes
from replank_local.artifacts import kafka_jars
from replank_local.errors import StackError
from replank_local.ports import HOST
from replank_local.state import write_private
from replank_local.unit import Command, Place, Unit

_SETTINGS: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{broker},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{broker}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
num.partitions=3
# A topic exists because somebody made it: a misspelt name is an error here, as in most clusters that matter.
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=3
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
# A broker that was killed is taken for alive until then, and may not register again: 9 s by default.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# A consumer that was killed may come back under the same name within the second.
group.min.session.timeout.ms=1000
"""


async def _prepare(place: Place) -> Command:
    folder = place.data_folder("kafka")
    data = folder / "log"
    data.mkdir(parents=True, exist_ok=True)
    settings = folder / "server.properties"
    write_private(
        settings,
        _SETTINGS.format(host=HOST, broker=place.ports["kafka"], controller=place.ports["kafka.controller"], data=data),
    )
    classpath = f"{kafka_jars().path}/*"
    logging = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")
    if not (data / "meta.properties").exists():
        cluster = cluster_id(uuid.uuid4())
        tool = ["java", *logging, "-cp", classpath, "kafka.tools.StorageTool", "format"]
        await _format(place, [*tool, "--cluster-id", cluster, "--config", str(settings)])
    return Command(
        argv=[
            *("java", "-Xms128m", "-Xmx512m", "-XX:+ExitOnOutOfMemoryError", *logging),
            *("-cp", classpath, "kafka.Kafka", str(settings)),
        ],
        cwd=folder,
    )


def cluster_id(drawn: uuid.UUID) -> str:
    """As Kafka writes its ids: URL-safe base 64. Like Kafka's own, it never begins as an option of a command does."""
    text = base64.urlsafe_b64encode(drawn.bytes).decode().rstrip("=")
    return f"A{text[1:]}" if text.startswith("-") else text


async def _format(place: Place, argv: list[str]) -> None:
    log = place.log("kafka")
    with log.open("ab") as out:
        tool = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out)
    if await tool.wait() != 0:
        reason = "\n  ".join(processes.tail(log, 10))
        raise StackError(f"Kafka's data folder could not be formatted; the end of {log}:\n  {reason}")


async def _ready(place: Place) -> bool:
    # A first look at the port: the admin client logs an error for each one that is closed.
    _, writer = await asyncio.open_connection(HOST, place.ports["kafka"])
    writer.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=place.endpoints.kafka, request_timeout_ms=5000)
    try:
        await admin.start()
        return bool((await admin.describe_cluster())["brokers"])
    except KafkaError:
        return False
    finally:
        await admin.close()


KAFKA: Final = Unit(
    name="kafka",
    ports={"kafka": 29092, "kafka.controller": 29093},
    prepare=_prepare,
    ready=_ready,
    artifact=kafka_jars,
    start_within=120,
    stop_within=30,
)
