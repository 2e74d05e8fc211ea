#!/usr/bin/env bash
# Runs the fuzzers (cmake --preset fuzz && cmake --build --preset fuzz), each for a time of its own on a processor, and
# prints a table of executions, coverage and findings. What was found lies in FOLDER/<target>/findings.
# usage: tests/fuzz/soak.sh [--seconds=600] [--jobs=1] [--folder=build/fuzz/soak] [--extra=DIR] [--report] [TARGET…]
#   --seconds  processor time per target, earlier runs with the same FOLDER included: it keeps inputs, time and logs
#   --extra    more files of images as seeds of the image targets, such as a collection of malformed ones
#   --report   only the table, of a soak that is done or still going on
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=600 jobs=1 folder=build/fuzz/soak extra= only_report=
# In this order: what reads the most complicated formats first.
all=(baseline_jpeg jpeg_coefficients image safetensors idx tar pack manifest config cifar list label_split spec stl10 metrics weights)
targets=()
for argument in "$@"; do
  case "$argument" in
    --seconds=*) seconds=${argument#*=} ;;
    --jobs=*) jobs=${argument#*=} ;;
    --folder=*) folder=${argument#*=} ;;
    --extra=*) extra=${argument#*=} ;;
    --report) only_report=yes ;;
    -*) sed -n '2,8p' "$0" >&2; exit 2 ;;
    *) targets+=("$argument") ;;
  esac
done
[ ${#targets[@]} -gt 0 ] || targets=("${all[@]}")
export TMPDIR=${TMPDIR:-$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)}
export UBSAN_OPTIONS=print_stacktrace=1

# Seconds of processor time that a process has had; nothing once it is gone.
cpu_seconds() {
  awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print int(($12 + $13) / hz) }' "/proc/$1/stat" 2>/dev/null || true
}

soak() {
  local target=$1 used part now pid
  local here=$folder/$target seeds=(tests/fuzz/corpus/"$target") most=4096
  case "$target" in
    baseline_jpeg | image) most=16384; [ -z "$extra" ] || seeds+=("$extra") ;;
    config) most=16384; seeds+=(configs) ;;
    pack | tar | weights) most=16384 ;;
  esac
  mkdir -p "$here/inputs" "$here/findings"
  used=$(cat "$here/seconds" 2>/dev/null || echo 0)
  # A finding ends the fuzzer; the next part goes on with the inputs so far.
  for ((part = 0; part < 20 && used < seconds; part++)); do
    build/fuzz/"$target"_fuzz -max_len=$most -rss_limit_mb=2048 -malloc_limit_mb=1024 -timeout=20 \
      -report_slow_units=20 -use_value_profile=1 -artifact_prefix="$here/findings/" "$here/inputs" "${seeds[@]}" >> "$here/log" 2>&1 &
    pid=$!
    local before=$used
    while now=$(cpu_seconds $pid) && [ -n "$now" ] && kill -0 $pid 2>/dev/null; do
      used=$((before + now))
      echo "$used" > "$here/seconds"
      if [ "$used" -ge "$seconds" ]; then kill -USR1 $pid; break; fi
      sleep 2
    done
    wait $pid || true
  done
}

report() {
  printf '%-18s %12s %8s %8s %8s %9s\n' target executions minutes coverage features findings
  local target log
  for target in "${targets[@]}"; do
    log=$folder/$target/log
    [ -e "$folder/$target/seconds" ] || continue
    printf '%-18s %12d %8.1f %8d %8d %9d\n' "$target" \
      "$(awk '/^INFO: Seed/ { all += n; n = 0 } /^#[0-9]/ { n = substr($1, 2) + 0 } END { print all + n }' "$log")" \
      "$(awk '{ print $1 / 60 }' "$folder/$target/seconds")" \
      "$(grep -o 'cov: [0-9]*' "$log" | awk '{ if ($2 > m) m = $2 } END { print m + 0 }')" \
      "$(grep -o 'ft: [0-9]*' "$log" | awk '{ if ($2 > m) m = $2 } END { print m + 0 }')" \
      "$(find "$folder/$target/findings" -type f | wc -l)"
  done
}

if [ -n "$only_report" ]; then report; exit; fi
running=0
for target in "${targets[@]}"; do
  if [ "$running" -ge "$jobs" ]; then wait -n; running=$((running - 1)); fi
  soak "$target" &
  running=$((running + 1))
done
wait
report
