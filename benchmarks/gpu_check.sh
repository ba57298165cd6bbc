#!/usr/bin/env bash
# Everything that waits for a GPU, in one go; all figures end in one folder.
#
#   benchmarks/gpu_check.sh [FOLDER]
#
# By the environment: DEVICE (cuda, mps, cpu), MODEL, PROFILES, BATCHES, ROWS, TOKENS, PYTHON, and SUITE_ARGS, which
# every run of the suites takes. Without a GPU it can be tried with DEVICE=cpu and small numbers.
# A missed threshold (exit code 1) does not end it; anything else does.
set -euo pipefail

: "${DEVICE:=cuda}" "${MODEL:=bundled}" "${PROFILES:=quick default}"
: "${BATCHES:=1,32,256}" "${ROWS:=10000000}" "${TOKENS:=64}" "${PYTHON:=.venv/bin/python}" "${SUITE_ARGS:=}"
cd "$(dirname "$0")/.."
out=${1:-reports/runs/gpu-$(date -u +%Y-%m-%d)}
mkdir -p "$out"
read -ra more <<<"$SUITE_ARGS"

suites() { # NAME ARGS...: one run of the suites, its report under the name
  local name=$1 code=0
  shift
  echo "== $name"
  "$PYTHON" -m pytest suites -m "$DEVICE" --engram-model "$MODEL" --engram-report "$out/$name" ${more[@]+"${more[@]}"} "$@" \
    2>&1 | tee "$out/$name.log" || code=$?
  echo "exit code $code" | tee -a "$out/$name.log"
  [ "$code" -le 1 ]
}

{
  date -u
  git rev-parse HEAD
  if command -v nvidia-smi >/dev/null; then nvidia-smi; else uname -a; fi
  "$PYTHON" -m pip freeze --exclude-editable
} >"$out/machine.txt"

for profile in $PROFILES; do
  suites "$profile" --engram-profile "$profile" --engram-lora-engine peft
done

# Trained anew from the same seed: what the device adds up in another order shows as another adapter.
first=${PROFILES%% *}
suites "$first-again" --engram-profile "$first" --engram-lora-engine peft --engram-retrain

if [ "$DEVICE" = cuda ] && "$PYTHON" -c "import unsloth" >"$out/unsloth.txt" 2>&1; then
  suites unsloth --engram-profile "$first" --engram-variants lora --engram-lora-engine unsloth
else
  echo "== Unsloth cannot be imported here, or there is no GPU: left out"
fi

gpus=$(if command -v nvidia-smi >/dev/null; then nvidia-smi -L | grep -c '^GPU ' || true; else echo 0; fi)
if [ "$DEVICE" = cuda ] && [ "$gpus" -gt 1 ]; then
  suites workers --engram-profile "$first" --engram-lora-engine peft -n "$gpus"
fi

echo "== cost of the memory"
"$PYTHON" benchmarks/memory_cost.py --device "$DEVICE" --model "$MODEL" --batches "$BATCHES" --rows "$ROWS" \
  --tokens "$TOKENS" --out "$out/memory_cost.json" | tee "$out/memory_cost.txt"

echo "figures are in $out"
