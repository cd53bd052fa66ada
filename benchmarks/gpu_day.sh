#!/usr/bin/env bash
# Everything that only a card can show, on a machine with a card that reaches no package index.
#   bash benchmarks/gpu_day.sh pack [--comfyui CHECKOUT]    here: collects what that machine lacks into .gpu_day/
#   bash benchmarks/gpu_day.sh run [--out DIR]              there, twice: under ten minutes each
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" benchmarks/gpu_day.py "$@"
