#!/usr/bin/env bash
# What only a GPU can tell, in parts that each end inside 10 minutes. The first one answers the most:
#
#   benchmarks/gpu_check.sh OUT values    the library loads; every op's values; NVIDIA's sanitizers
#   benchmarks/gpu_check.sh OUT speed     launches; speed of the kernels; cost of a call; ncu
#   benchmarks/gpu_check.sh OUT compiled  kernels beside torch.compile
#   benchmarks/gpu_check.sh OUT training  whole training steps in every gradient mode
#
# Logs, results and summary.json go to OUT/PART; the last line is the verdict, also when the run is
# stopped early. The CUDA library is built for this machine's devices, unless one that serves them is
# there already: `make gpu-library CUDA=9.0` builds it on a machine without a GPU. No network is
# needed. Without a GPU the steps that need one are skipped in words, and the benchmarks run their
# smoke test on the CPU. Variables: PYTHON, the interpreter with torch; STEPS, a regular expression
# of the steps to run.
set -uo pipefail
usage='usage: benchmarks/gpu_check.sh OUT values|speed|compiled|training'
part=${2:?$usage}
case $part in values | speed | compiled | training) ;; *) echo "$usage" >&2 && exit 2 ;; esac
out=$(mkdir -p "${1:?$usage}/$part" && cd "$1/$part" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
: >"$out/steps.tsv"

verdict() { "$python" -m benchmarks.gpu.verdict "$out"; }
trap 'kill $(jobs -p) 2>/dev/null; verdict; exit 1' TERM INT

have_gpu() { "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

# Whether the CUDA library that is there has code for every device of this machine.
library_serves() {
  "$python" -c 'from margin_ext._extension import require_ops; require_ops("cuda")' \
    >"$out/library.log" 2>&1
}

# step NAME SECONDS COMMAND...: runs the command, its output to OUT/PART/NAME.log.
step() {
  local name=$1 limit=$2 started=$SECONDS status=ok
  shift 2
  [[ $name =~ ${STEPS:-.} ]] || return 0
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status="failed ($?)"
  printf '%s\t%s\t%d\n' "$name" "$status" $((SECONDS - started)) >>"$out/steps.tsv"
  printf '%-22s %s, %d s\n' "$name" "$status" $((SECONDS - started))
  [[ $status == ok ]] || tail -n 15 "$out/$name.log"
}

# gpu_step: the same, where there is a GPU.
gpu_step() {
  if $gpu; then
    step "$@"
  elif [[ $1 =~ ${STEPS:-.} ]]; then
    printf '%s\tskipped\t0\n' "$1" >>"$out/steps.tsv"
    printf '%-22s skipped: no GPU is at hand\n' "$1"
  fi
}

# One of NVIDIA's tools on the program that calls every kernel, for rows of two types each, side by
# side; any finding fails the step. Every tensor is an allocation of its own, so that an access past
# its end is seen.
sanitize() {
  local types
  for types in "float32 float64" "bfloat16 float16"; do
    # shellcheck disable=SC2086
    gpu_step "$1_${types%% *}" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer \
      --tool "$1" --error-exitcode 9 "$python" -m benchmarks.gpu.every_kernel $types &
  done
}

pytest() { "$python" -m pytest -q -p no:cacheprovider -p no:benchmark -o addopts= "$@"; }
export -f pytest
export python

gpu=false
have_gpu && gpu=true
$gpu && nvidia-smi >"$out/nvidia-smi.txt" 2>&1

if $gpu && ! library_serves; then
  TORCH_CUDA_ARCH_LIST=$("$python" -c \
    'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST MARGIN_EXT_CUDA=on
  step build 180 "$python" -m pip install --no-build-isolation --no-deps --no-index \
    --disable-pip-version-check --editable .
fi

case $part in
  values) # Nothing is timed, so all steps run side by side.
    parallel=()
    "$python" -c 'import xdist' 2>/dev/null && parallel=(-n 8)
    step doctor 60 "$python" -m margin_ext doctor
    gpu_step device_tests 150 bash -c 'pytest "$@"' - "${parallel[@]}" tests/test_cuda_device.py \
      tests/test_no_synchronisation.py --junitxml "$out/device_tests.xml" &
    gpu_step op_tests 150 bash -c 'pytest "$@"' - "${parallel[@]}" -m cuda tests/reference \
      tests/functional --junitxml "$out/op_tests.xml" &
    sanitize memcheck 150
    sanitize racecheck 240
    sanitize initcheck 150
    sanitize synccheck 150
    wait
    ;;
  speed)
    gpu_step launches 60 "$python" -m benchmarks.gpu.launches --out "$out/launches.json"
    gpu_step kernels 200 "$python" -m benchmarks.kernels --device cuda --no-compile \
      --out "$out/kernels.json"
    gpu_step call_overhead 40 "$python" -m benchmarks.call_overhead --device cuda \
      --out "$out/call_overhead.json"
    gpu_step ncu 120 ncu --clock-control none --section SpeedOfLight --section LaunchStats \
      --section Occupancy --section WarpStateStats --section MemoryWorkloadAnalysis --csv --page raw \
      --kernel-name-base demangled --kernel-name 'regex:margin::cuda' --log-file "$out/ncu.csv" \
      "$python" -m benchmarks.gpu.full_sizes
    $gpu || step smoke 120 "$python" -m benchmarks.kernels --quick --no-compile --only loss \
      --out "$out/smoke.json"
    ;;
  compiled)
    gpu_step kernels 400 "$python" -m benchmarks.kernels --device cuda \
      --only 'margin_loss, forward and backward' --out "$out/kernels.json"
    ;;
  training)
    # A compiled network takes a minute for each loss.
    gpu_step eager 300 "$python" -m benchmarks.training_step --device cuda --no-compile \
      --only '(resnet18|resnet50|vit_s): .*bf16' --out "$out/training_step.json"
    gpu_step compiled 250 "$python" -m benchmarks.training_step --device cuda \
      --only '(resnet18|vit_s): compiled' --losses '^(finite_difference|distance_1|adversarial_1)$' \
      --out "$out/training_step_compiled.json"
    ;;
esac
trap - TERM INT
verdict
