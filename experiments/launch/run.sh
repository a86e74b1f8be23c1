#!/usr/bin/env bash
# Trains on this machine, and restarts the run after a crash.
#
#   experiments/launch/run.sh --config=configs/kinetics.py:i3d_rgb --workdir=runs/i3d_rgb \
#       [--config.KEY=VALUE ...]
#
# Exit status:
#   0         the run has ended.
#   2         its config or arguments are wrong.
#   126, 127  there is no such Python.
#   130, 143  SIGTERM or Ctrl-C stopped it. The first one lets the run save a checkpoint.
#   other     the run still crashed after the last restart.
#
# Environment variables:
#   RESTARTS  maximum number of restarts (default: 100).
#   PAUSE     seconds before a restart (default: 10).
#   PYTHON    the interpreter (default: python).
set -u
child='' stopped='' told=''
trap 'stopped=143; [ -z "$child" ] || { told=1; kill -TERM "$child"; }' TERM INT

# Waits until $child has ended, and returns its status. `wait` alone is not enough: a signal that
# arrives just as `wait` begins does not end it, and SIGINT can be lost. A signal that arrives while
# a command runs in the foreground is handled after that command.
ended() {
  # The signal may have arrived before $child was set.
  [ -z "$stopped" ] || [ -n "$told" ] || kill -TERM "$child"
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
  done
  wait "$child"
}

for ((restart = 0; ; restart++)); do
  # In a session of its own the run does not get Ctrl-C a second time.
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
