#!/bin/sh
# A built-in algorithm on the group that torchrun starts: ./kmeans.sh data/train.csv [options of phalanx train]
# On several machines add what torchrun needs there: --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29400 --rdzv-id RUN
set -eu
train=$1
shift
exec torchrun --nproc-per-node "${WORKERS:-2}" --max-restarts 3 --no-python \
    phalanx train kmeans --train "$train" --set k=10 --launcher attach "$@"
