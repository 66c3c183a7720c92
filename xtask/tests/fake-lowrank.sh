#!/bin/bash
# Stands in for `lowrank` in the tests of the grid. Its results depend on its arguments alone.
#   FAKE_LOG   file that gets a line at the start and at the end of every run
#   FAKE_FAIL  text of the arguments that makes a run fail
#   FAKE_KILL  signal that ends a run after its first checkpoint
#   FAKE_HOLD  file that a run waits to be removed
#   FAKE_SLEEP seconds that a run takes
set -u
command=$1
out= resume= args=()
while [ $# -gt 0 ]; do
  case $1 in
    -o) out=$2; shift ;;
    --log-dir) shift ;;
    --resume) resume=1 ;;
    *) args+=("$1") ;;
  esac
  shift
done
score=$(printf '%s ' "${args[@]}" | cksum | cut -c1-3)

if [ "$command" = report ]; then
  for record in "${args[1]}"/cells/*/run.json; do
    folder=$(dirname "$record")
    printf '%s %s\n' "$(basename "${folder%-*}")" "$(cat "$record")"
  done
  exit 0
fi

name=$(basename "${out:-none}")
echo "start $name $RAYON_NUM_THREADS" >> "$FAKE_LOG"
[ -n "$resume" ] && echo "resume $name" >> "$FAKE_LOG"
[ -n "${SLURM_STEP_NUM_TASKS:-}" ] && echo "launched $SLURM_STEP_NUM_TASKS" >> "$FAKE_LOG"
if [ -n "${FAKE_FAIL:-}" ] && [[ "${args[*]}" == *"$FAKE_FAIL"* ]]; then
  printf "error: told to fail\n\nFor more information, try '--help'.\n" >&2
  exit 1
fi
[ -n "$out" ] && [ -e "$out" ] && [ -z "$resume" ] && { echo "error: $out is in the way" >&2; exit 1; }
while [ -n "${FAKE_HOLD:-}" ] && [ -e "$FAKE_HOLD" ]; do sleep 0.05; done
if [ -n "${FAKE_KILL:-}" ]; then
  mkdir -p "$out/checkpoints/step-3"
  kill -s "$FAKE_KILL" $$
fi
sleep "${FAKE_SLEEP:-0}"
[ -n "$out" ] && mkdir -p "$out"
if [ "$command" = finetune ]; then
  record='{"format":1,"train_info":{"status":"%s","metric":0.%s,"wall_s":30.0,"trainable":1000}}'
  printf "$record" running "$score" > "$out/run.json"
  printf "$record" done "$score" > "$out/run.json.tmp"
  mv "$out/run.json.tmp" "$out/run.json"
fi
echo "end $name" >> "$FAKE_LOG"
echo '{"metric":0.'"$score"'}'
