#!/usr/bin/env bash
# A run on this machine, started again whenever it dies of something that starting again may mend.
#
#   experiments/launch/run.sh --config=configs/kinetics.py:i3d_rgb --workdir=runs/i3d_rgb [--config.KEY=VALUE ...]
#
# Ends when the run has ended (0), cannot be run as it is asked for (2), or was asked to stop (130, 143). RESTARTS (default: 100)
# is how often it starts again at most, PAUSE (default: 10) how many seconds later, PYTHON (default: python) with what.
set -u
python=${PYTHON:-python}
child=0
trap '[ "$child" = 0 ] || kill -TERM "$child"' TERM INT
for ((restart = 0; restart <= ${RESTARTS:-100}; restart++)); do
  "$python" -m i3d_jax.main "$@" &
  child=$!
  wait "$child"
  status=$?
  # A signal ends `wait` before the run, which is saving its step.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
  done
  case $status in
    0 | 2 | 130 | 143) exit "$status" ;;
  esac
  echo "run.sh: status $status; again in ${PAUSE:-10} s" >&2
  sleep "${PAUSE:-10}"
done
exit "$status"
