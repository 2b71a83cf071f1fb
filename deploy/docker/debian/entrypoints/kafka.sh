#!/bin/sh
# As the official image: KAFKA_LOG_DIRS is log.dirs and so on; an empty volume is formatted.
set -eu
settings=/tmp/server.properties
env | sed -n '/^KAFKA_HEAP_OPTS=/d; s/^KAFKA_//p' | while IFS='=' read -r name value; do
    printf '%s=%s\n' "$(printf '%s' "$name" | tr 'A-Z_' 'a-z.')" "$value"
done >"$settings"
if [ ! -s "$KAFKA_LOG_DIRS/meta.properties" ]; then
    java -cp '/opt/kafka/libs/*' kafka.tools.StorageTool format \
        -t "$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=' | sed 's/^-/A/')" -c "$settings"
fi
# shellcheck disable=SC2086  # options, to be split
exec java ${KAFKA_HEAP_OPTS:-} -cp '/opt/kafka/libs/*' kafka.Kafka "$settings"
