#!/usr/bin/env bash
# `python -m benchmarks gpu` on a machine without network, from wheels that were carried there.
#   with network:  benchmarks/bare.sh fetch WHEELS [PYTHON_VERSION] [--torch]
#   on the card:   benchmarks/bare.sh run WHEELS [OUT]
# Without --torch the machine's own PyTorch and torchvision are used, CUDA 13 builds: some 600 MB to
# carry, not four gigabytes. WHEELS stays beside the checkout, not in it. Where the FAISS for GPUs does
# not load (another CUDA, or left out to save 360 MB), the one for CPUs takes its place and the tables
# say so.
set -euo pipefail
cd "$(dirname "$0")/.."
step=${1:?fetch or run} wheels=${2:?a folder for the wheels}
heavy='^(torch|triton|cuda-|nvidia-)' needed='^nvidia-curand'

fetch() {
  local version=3.12 torch=no argument glibc platforms=()
  for argument in "$@"; do
    if [ "$argument" = --torch ]; then torch=yes; else version=$argument; fi
  done
  local uv list=$wheels/list.txt
  uv=$(command -v uv || echo .venv/bin/uv)
  mkdir -p "$wheels/cpu"
  "$uv" pip compile pyproject.toml --extra gpu --extra service -c constraints.txt --quiet --no-header \
    --no-annotate --no-emit-index-url --python-version "$version" --python-platform linux > "$list.all"
  if [ "$torch" = yes ]; then
    cp "$list.all" "$list"
  else # FAISS asks for cuRAND, which PyTorch's own wheels may lack
    grep -vE "$heavy" "$list.all" > "$list"
    grep -E "$needed" "$list.all" >> "$list"
  fi
  for glibc in 5 17 24 26 27 28; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
  download=(python3 -m pip download --quiet --disable-pip-version-check --exists-action i --no-deps
    --only-binary=:all: --python-version "$version" --implementation cp --platform manylinux2014_x86_64
    --platform manylinux1_x86_64 --platform linux_x86_64 "${platforms[@]}")
  "${download[@]}" --dest "$wheels" --requirement "$list"
  "${download[@]}" --dest "$wheels/cpu" "$(grep '^faiss-cpu==' constraints.txt)"
  du -sh "$wheels"
}

run() {
  local site out=${1:-benchmarks/results} own
  site=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$site'" EXIT
  own=$(python3 -c 'import nvidia.cu13 as cuda; print(list(cuda.__path__)[0])' 2> /dev/null || true)
  install=(python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps
    --no-compile --upgrade --target "$site")
  "${install[@]}" "$wheels"/*.whl
  # FAISS looks for all of CUDA in one folder: what PyTorch brought is linked beside what was carried.
  if [ -n "$own" ] && [ -d "$site/nvidia/cu13/lib" ]; then
    find "$own/lib" -name '*.so*' -exec ln -s {} "$site/nvidia/cu13/lib/" \; 2> /dev/null || true
  fi
  export PYTHONPATH="$site:$PWD:$PWD/indexer:$PWD/service${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
  if ! python3 -c 'import torch, faiss' 2> "$site/faiss.log"; then
    echo "the FAISS for GPUs does not load here ($(tail -1 "$site/faiss.log")): the one for CPUs is used" >&2
    rm -rf "$site"/faiss "$site"/faiss_*
    "${install[@]}" "$wheels"/cpu/*.whl
  fi
  python3 -m benchmarks gpu --out "$out"
}

case $step in
  fetch | run) "$step" "${@:3}" ;;
  *) echo "fetch or run, not $step" >&2 && exit 2 ;;
esac
