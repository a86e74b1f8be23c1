#!/usr/bin/env bash
# Trains on several nodes of a SLURM cluster, with one process per GPU. JAX finds the processes by
# SLURM's variables.
#
#   sbatch --nodes=8 experiments/launch/slurm.sh --config=configs/kinetics.py:i3d_rgb \
#       --workdir=/shared/runs/i3d_rgb --config.dataset.data_dir=/shared/data \
#       --config.train_clips.workers=1 --config.train_clips.threads=8 --config.eval_clips.threads=8
#
# The workdir is on storage that all nodes share. The published networks were trained with 64
# replicas; with N processes, add --config.grad_accum_steps=$((64 / N)). Each process decodes with
# its own cores (--cpus-per-task); the configs' defaults are for a process that has a whole host.
# RESTARTS (default: 100) is the maximum number of times that the job is requeued.
#SBATCH --job-name=i3d_jax
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Two minutes before the time limit, and on preemption, the run saves a checkpoint. Then the job is
# requeued.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m i3d_jax.main "$@"
status=$?
case $status in
  0 | 2 | 126 | 127) exit "$status" ;;
esac
# It was stopped (143), or a node was lost: the requeued job resumes the run.
((${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-100})) || exit "$status"
scontrol requeue "$SLURM_JOB_ID"
exit "$status"
