#!/usr/bin/env bash
# `python -m benchmarks gpu` on a machine without network, from wheels that were carried there.
#   with network:  benchmarks/bare.sh fetch WHEELS [PYTHON_VERSION] [--torch]
#   on the card:   benchmarks/bare.sh run WHEELS [OUT]
# Without --torch the machine's own PyTorch and torchvision are used, CUDA 13 builds: half a gigabyte
# to carry, not four. WHEELS stays beside the checkout, not in it.
set -euo pipefail
cd "$(dirname "$0")/.."
step=${1:?fetch or run} wheels=${2:?a folder for the wheels}
heavy='^(torch|triton|nvidia-|cuda-)'

if [ "$step" = fetch ]; then
  shift 2
  version=3.12 torch=no
  for argument in "$@"; do
    if [ "$argument" = --torch ]; then torch=yes; else version=$argument; fi
  done
  mkdir -p "$wheels"
  uv=$(command -v uv || echo .venv/bin/uv)
  "$uv" pip compile pyproject.toml --extra gpu --extra service -c constraints.txt --quiet --no-header \
    --no-annotate --no-emit-index-url --python-version "$version" --python-platform linux > "$wheels/list.txt"
  if [ "$torch" = no ]; then
    grep -vE "$heavy" "$wheels/list.txt" > "$wheels/light.txt"
    mv "$wheels/light.txt" "$wheels/list.txt"
  fi
  platforms=()
  for glibc in 5 17 24 26 27 28; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version "$version" --implementation cp --platform manylinux2014_x86_64 \
    --platform manylinux1_x86_64 --platform linux_x86_64 "${platforms[@]}" \
    --dest "$wheels" --requirement "$wheels/list.txt"
  du -sh "$wheels"
elif [ "$step" = run ]; then
  site=$(mktemp -d) out=${3:-benchmarks/results}
  trap 'rm -rf "$site"' EXIT
  python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
    --target "$site" "$wheels"/*.whl
  export PYTHONPATH="$site:$PWD:$PWD/indexer:$PWD/service${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
  python3 -m benchmarks gpu --out "$out"
else
  echo "fetch or run, not $step" >&2
  exit 2
fi
