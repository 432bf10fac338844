#!/usr/bin/env bash
# Installs the server into a fresh virtual environment. Both images run it; so does a test.
# usage: install.sh VENV EXTRAS SOURCE      e.g. install.sh /opt/mrad cpu,service /src
set -euo pipefail
venv=$1 extras=$2 source=$3
python3 -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check 'uv>=0.5'
constraints=()
if [ -f "$source/constraints.txt" ]; then constraints=(-c "$source/constraints.txt"); fi
index=()
# The CPU builds of torch stand in an index of their own; without it, the larger default is used.
if [ -n "${TORCH_INDEX_URL:-}" ]; then
  index=(--extra-index-url "$TORCH_INDEX_URL" --index-strategy unsafe-best-match)
fi
# The client stands beside the server in the source; no index is asked for it, nor is it left there.
"$venv/bin/uv" pip install --quiet --no-cache --compile-bytecode --python "$venv/bin/python" \
  "${constraints[@]}" "${index[@]}" --no-sources "$source/clients/python" "$source[$extras]"
"$venv/bin/mrad" --help > /dev/null
