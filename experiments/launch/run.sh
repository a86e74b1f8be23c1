#!/usr/bin/env bash
# A run on this machine, started again whenever it dies of something that starting again may mend.
#
#   experiments/launch/run.sh --config=configs/kinetics.py:i3d_rgb --workdir=runs/i3d_rgb [--config.KEY=VALUE ...]
#
# Ends when the run has ended (0), cannot be run as it is asked for (2; 126 and 127: there is no such Python), or was asked to stop
# (130, 143), by SIGTERM or Ctrl-C, which let it save its step; a second one does not. RESTARTS (default: 100) is how often
# it is started again at most, PAUSE (default: 10) how many seconds later, PYTHON (default: python) with what.
set -u
child='' stopped='' told=''
trap 'stopped=143; [ -z "$child" ] || { told=1; kill -TERM "$child"; }' TERM INT

# Waits until $child has ended, and has its status. Not by `wait` alone: a signal that comes just as it begins does not end it, and
# SIGINT can be lost altogether. What comes while a command in the foreground runs is kept for after it.
ended() {
  # The signal may have come before $child was known.
  [ -z "$stopped" ] || [ -n "$told" ] || kill -TERM "$child"
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
  done
  wait "$child"
}

for ((restart = 0; ; restart++)); do
  # In a session of its own, Ctrl-C does not reach it too.
  setsid "${PYTHON:-python}" -m i3d_jax.main "$@" &
  child=$!
  ended
  status=$?
  child=''
  case $status in
    0 | 2 | 126 | 127 | 130 | 143) exit "$status" ;;
  esac
  ((restart < ${RESTARTS:-100})) || exit "$status"
  if [ -z "$stopped" ]; then
    echo "run.sh: status $status; again in ${PAUSE:-10} s" >&2
    sleep "${PAUSE:-10}" &
    child=$!
    ended 2>/dev/null
    child=''
  fi
  [ -z "$stopped" ] || exit "$stopped"
done
