#!/usr/bin/env bash
# A run on several nodes of a SLURM cluster, one process per GPU; JAX finds the others from SLURM's variables.
#
#   sbatch --nodes=8 experiments/launch/slurm.sh --config=configs/kinetics.py:i3d_rgb --workdir=/shared/runs/i3d_rgb \
#       --config.dataset.data_dir=/shared/data --config.train_clips.workers=1 --config.train_clips.threads=8 --config.eval_clips.threads=8
#
# The workdir is on storage that all nodes share. 64 processes are the release's replicas; with N, --config.grad_accum_steps=$((64 / N)).
# Each process decodes with its own cores (--cpus-per-task), not with a whole host's as configs have it. RESTARTS (default: 100) is how often the job is queued again at most.
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
  0 | 2 | 126 | 127) exit "$status" ;;
esac
# Asked to stop (143), or a node was lost: the run goes on where it was.
((${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-100})) || exit "$status"
scontrol requeue "$SLURM_JOB_ID"
exit "$status"
