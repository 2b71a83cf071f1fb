#!/bin/sh
# Usage: build.sh BASE [docker build options]    makes replank-debian/python and replank-debian/servers
# from BASE (any Debian 12 image that the engine has) and the binaries in the cache of `make up`.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
base=$1
shift
cache=${XDG_CACHE_HOME:-$HOME/.cache}/replank
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp -r "$here/Dockerfile" "$here/entrypoints" "$context"
newest() {
    # shellcheck disable=SC2012,SC2086  # names of our own making; a pattern
    found=$(ls -td "$cache"/$1 2>/dev/null | head -n 1)
    [ -n "$found" ] || { echo "nothing in $cache is called $1: run \`make up\` without Docker once" >&2; exit 1; }
    echo "$found"
}
cp -r "$(newest 'kafka-*')" "$context/kafka"
cp "$(newest 'bin/versitygw-*')" "$context/versitygw"
cp "$(newest 'bin/jaeger-*')" "$context/jaeger"
for target in python servers; do
    DOCKER_BUILDKIT=1 docker build "$@" --build-arg "BASE=$base" --target "$target" -t "replank-debian/$target" "$context"
done
