#!/usr/bin/env bash
# Trains on all hosts of a TPU pod slice. JAX finds the other hosts by itself.
#
#   TPU=my-v5e-64 ZONE=us-west4-a experiments/launch/tpu_pod.sh \
#       --config=configs/kinetics.py:i3d_rgb --workdir=/shared/runs/i3d_rgb \
#       --config.dataset.data_dir=/shared/data
#
# Every host has this repository in REPOSITORY (default: ~/i3d_jax), and in it a virtual environment
# .venv in which `pip install -e .[tpu]` was run. The workdir is on a file system that all hosts
# share (Filestore; not a bucket, which cannot rename folders). The published networks were trained
# with 64 replicas; with N chips, add --config.grad_accum_steps=$((64 / N)). If a host is lost, the
# processes of the others exit; run.sh restarts each, and they resume together.
set -eu
arguments=$(printf ' %q' "$@")
run="PYTHON=.venv/bin/python experiments/launch/run.sh$arguments"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ${REPOSITORY:-~/i3d_jax} && $run"
