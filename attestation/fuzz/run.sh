#!/bin/bash
# Every parser, and the verifier behind it, under libFuzzer for FUZZ_SECONDS each (60), on as many cores as there are.
# Stable Rust will do: the flags below are what libFuzzer needs for its guidance; nothing here is `unsafe`, so no
# sanitizer is missed. Corpora grow in the folder named; seeds are the recorded vectors.
#   run.sh CORPORA [JOB …]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
corpora=$(mkdir -p "$1" && cd "$1" && pwd)
shift
vectors=$here/../tests/vectors
seconds=${FUZZ_SECONDS:-60}
target=x86_64-unknown-linux-gnu
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$here/../../target}/fuzz

RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=on -Coverflow-checks=on -Ccodegen-units=1" \
  "${CARGO:-cargo}" build --quiet --release --target $target --manifest-path "$here/Cargo.toml"

# job, program, seeds
jobs="snp evidence snp
tdx evidence tdx
gpu evidence gpu
tpm evidence tpm,azure,wrapped,dstack
certificates endorsements snp
collateral endorsements tdx,collateral,collateral-2026-03
manifests endorsements gpu
bundle bundle bundle
event-log event_log ccel,tpm
firmware firmware measure"

run() {
  local job=$1 program=$2 seeds=() log
  for folder in ${3//,/ }; do seeds+=("$vectors/$folder"); done
  mkdir -p "$corpora/$job"
  log=$corpora/$job.log
  if "$CARGO_TARGET_DIR/$target/release/$program" "$corpora/$job" "${seeds[@]}" -max_total_time="$seconds" \
    -max_len=262144 -timeout=20 -rss_limit_mb=2048 -artifact_prefix="$corpora/$job-" >"$log" 2>&1; then
    echo "$job: $(sed -n 's/^Done \([0-9]*\) runs.*/\1 inputs/p' "$log"), $(grep -o 'cov: [0-9]*' "$log" | tail -1)"
  else
    echo "$job failed:" >&2
    grep -aE 'panicked|ERROR|SUMMARY|Test unit written' -A1 "$log" >&2
    return 1
  fi
}
export -f run
export vectors corpora seconds target
wanted=" $* "
while read -r job rest; do
  [[ $# -eq 0 || $wanted == *" $job "* ]] && echo "$job $rest"
done <<<"$jobs" | xargs -P "$(nproc)" -L 1 bash -c 'run "$@"' run
