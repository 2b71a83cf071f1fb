#!/usr/bin/env bash
# Makes .venv exactly as requirements.lock pins it, with the packages of this repository editable in it.
#   make-venv.sh PYTHON PACKAGE_FOLDER...
set -euo pipefail

python=$1
shift
say() { printf '%6s   %-22s %s\n' "" ".venv" "$*" >&2; }
fail() {
  echo "error: $1" >&2
  echo "  what to do: $2" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "there is no $python" "apt-get install python3 python3-venv, or PYTHON=…"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" -V) is too old: 3.11 is needed" "name a newer one: make PYTHON=python3.12"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "this Python makes no virtual environments" "apt-get install python3-venv"

rm -f .venv/.stamp
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
  say "making it with $("$python" -V)"
  "$python" -m venv --clear .venv
fi

# uv installs everything else: it comes first, by pip, as pinned as the rest.
if ! .venv/bin/uv --version >/dev/null 2>&1; then
  say "installing uv"
  pinned=$(mktemp)
  trap 'rm -f "$pinned"' EXIT
  awk '/^uv==/ {on = 1} on {print} on && !/\\$/ {exit}' requirements.lock >"$pinned"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$pinned"
fi

say "installing what requirements.lock pins"
# uv does not read pip's settings: hand over where pip finds packages and whom it trusts.
setting() { .venv/bin/python -m pip config get "$1" 2>/dev/null || true; }
: "${UV_DEFAULT_INDEX:=$(setting global.index-url)}"
: "${SSL_CERT_FILE:=${PIP_CERT:-$(setting global.cert)}}"
[ -z "$UV_DEFAULT_INDEX" ] || export UV_DEFAULT_INDEX
[ -z "$SSL_CERT_FILE" ] || export SSL_CERT_FILE
.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock

say "installing the packages of this repository"
editables=()
for folder in "$@"; do
  editables+=(--editable "$folder")
done
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation "${editables[@]}"

touch .venv/.stamp
say "ready"
