#!/usr/bin/env bash
# A run on several nodes of a SLURM cluster, one process per GPU; JAX finds the others from SLURM's variables.
#
#   sbatch --nodes=8 experiments/launch/slurm.sh --config=configs/kinetics.py:i3d_rgb --workdir=/shared/runs/i3d_rgb
#
# The workdir is on storage that all nodes share. 64 processes are the release's replicas; with N, --config.accumulate=$((64 / N)).
#SBATCH --job-name=i3d_jax
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Two minutes before the time is up, and when the job is preempted, the step is saved; then the job is queued again.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m i3d_jax.main "$@"
status=$?
case $status in
  0 | 2) exit "$status" ;;
esac
# Asked to stop (143), or a node was lost: the run goes on where it was.
scontrol requeue "$SLURM_JOB_ID"
exit "$status"
