#!/bin/sh
# The first machine of a Ray cluster, which runs no jobs itself, and Piying's queue on it with the given options.
set -eu
ray start --head --port=6379 --num-cpus=0 --num-gpus=0 --include-dashboard=false --disable-usage-stats
exec python -m runner serve --ray auto "$@"
