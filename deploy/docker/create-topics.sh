#!/bin/sh
# The topics that the services publish to. A topic exists because somebody made it: the broker makes none by itself.
set -eu

topic() {
    name=$1
    shift
    /opt/kafka/bin/kafka-topics.sh --bootstrap-server kafka:9092 --create --if-not-exists --topic "$name" "$@"
}

for service in schema auth-cache benchmark archiver; do
    topic "replank.$service" --partitions 6
    topic "replank.$service.dlq" --partitions 6
done
topic replank.alerts --partitions 6
# Of a flag, the last value is what counts.
topic replank.flags --partitions 1 --config cleanup.policy=compact
