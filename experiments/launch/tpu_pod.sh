#!/usr/bin/env bash
# A run on all hosts of a TPU pod slice; JAX finds the others by itself.
#
#   TPU=my-v5e-64 ZONE=us-west4-a experiments/launch/tpu_pod.sh --config=configs/kinetics.py:i3d_rgb --workdir=/shared/runs/i3d_rgb \
#       --config.dataset.data_dir=/shared/data
#
# Every host has this repository in REPOSITORY (default: ~/i3d_jax), with a virtual environment .venv in it where `pip install
# -e .[tpu]` was run, and the workdir on a file system that all share (Filestore; not a bucket, which cannot rename folders).
# 64 chips are the release's replicas; with N, --config.grad_accum_steps=$((64 / N)). When a host is lost the others end: run.sh
# starts each again, and they meet.
set -eu
arguments=$(printf ' %q' "$@")
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ${REPOSITORY:-~/i3d_jax} && PYTHON=.venv/bin/python experiments/launch/run.sh$arguments"
