#!/usr/bin/env bash
# What Plinth does on a GPU, beside transformers, in one table; made for a machine with torch and
# transformers and no network, in less than 8 minutes. Run from any folder of a copy of the tree.
#
#   ops/bench/gpu.sh --pack          before, where there is a network: fill .bench/gpu-pack
#   ops/bench/gpu.sh                 there: all steps (tests, engine, training, PPO), then the table
#   ops/bench/gpu.sh --device cpu    anywhere: small models in plain torch, to try the script itself
#   ops/bench/gpu.sh --help          the other options
#
# Results go to $OUT, else .bench/gpu: results.jsonl, table.md (for docs/benchmarks.md), log.txt.
# PYTHON is the interpreter that has torch (else python3). The pack is at most 60 MB and may be
# missing: it has pytest as wheels, and the CPU kernels, for a machine without g++. Nothing is
# installed into the machine's Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
PACK=${PACK:-.bench/gpu-pack}
NATIVE=services/plinth/kernels/_native
export PYTHONPATH="$PWD/services:$PWD/tests:$PWD/ops/bench"

if [ "${1:-}" = --pack ]; then
  PYTHON=${PYTHON:-.venv/bin/python}
  rm -rf "$PACK"
  mkdir -p "$PACK/wheels" "$PACK/kernels"
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
    --platform any --python-version 3.12 --implementation py --abi none \
    -d "$PACK/wheels" "$(grep -E '^pytest==' requirements.lock)"
  "$PYTHON" -m plinth.kernels.build
  cp "$("$PYTHON" -c 'from plinth.kernels.build import library; print(library())')" "$PACK/kernels"
  size=$(du -sm "$PACK" | cut -f1)
  echo "gpu.sh: $PACK has $size MB"
  test "$size" -le 60 || { echo "gpu.sh: more than 60 MB" >&2; exit 1; }
  exit 0
fi

PYTHON=${PYTHON:-python3}
if [ -d "$PACK/kernels" ]; then # named by their source's digest: others are not looked at
  mkdir -p "$NATIVE"
  for built in "$PACK"/kernels/*.so; do
    [ -e "$NATIVE/${built##*/}" ] || cp "$built" "$NATIVE/"
  done
fi
# A trial beside other work: threads that spin at barriers would wait for one another for minutes.
case " $* " in *" --device cpu "*) export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} ;; esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -d "$PACK/wheels" ] && ! "$PYTHON" -c 'import pytest' 2>/dev/null; then
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
    --target "$scratch" "$PACK"/wheels/*.whl || echo "gpu.sh: the pack's wheels can't be installed" >&2
  export PYTHONPATH="$PYTHONPATH:$scratch"
fi
"$PYTHON" ops/bench/gpu.py "$@"
