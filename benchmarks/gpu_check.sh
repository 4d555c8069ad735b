#!/usr/bin/env bash
# Everything that only a GPU can tell, in one run that ends inside 10 minutes:
#
#   benchmarks/gpu_check.sh OUT
#
# Builds the CUDA library for the devices of this machine, runs the tests on them, NVIDIA's
# sanitizers and profiler on a reduced program, and the benchmarks. Logs, results and summary.json go
# to OUT; the last line is the verdict. Without a GPU it builds, says which steps it skips, and runs
# the benchmarks' smoke test on the CPU. Variables: PYTHON, the interpreter with torch; STEPS, a
# regular expression of the steps to run.
set -uo pipefail
out=$(mkdir -p "${1:?usage: benchmarks/gpu_check.sh OUT}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
: >"$out/steps.tsv"

have_gpu() { "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

# step NAME SECONDS COMMAND...: runs the command, its output to OUT/NAME.log.
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

# A tool of NVIDIA's on the program that calls every kernel; any finding fails the step.
sanitize() { gpu_step "$1" 100 compute-sanitizer --tool "$1" --error-exitcode 9 \
  "$python" -m benchmarks.gpu.every_kernel; }

gpu=false
have_gpu && gpu=true
$gpu && nvidia-smi >"$out/nvidia-smi.txt" 2>&1

# No network is needed: what the build needs has to be there already.
if [[ -z ${TORCH_CUDA_ARCH_LIST:-} ]]; then
  TORCH_CUDA_ARCH_LIST=9.0
  $gpu && TORCH_CUDA_ARCH_LIST=$("$python" -c \
    'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  export TORCH_CUDA_ARCH_LIST
fi
step build 240 "$python" -m pip install --no-build-isolation --no-deps --no-index \
  --disable-pip-version-check --editable .
step doctor 60 "$python" -m margin_ext doctor

parallel=()
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n 8)
gpu_step device_tests 120 "$python" -m pytest -q -p no:cacheprovider tests/test_cuda_device.py \
  tests/test_no_synchronisation.py --junitxml "$out/device_tests.xml"
gpu_step op_tests 200 "$python" -m pytest -q -p no:cacheprovider "${parallel[@]}" -m cuda \
  tests/reference tests/functional --junitxml "$out/op_tests.xml"

sanitize memcheck
sanitize racecheck
sanitize initcheck
sanitize synccheck
gpu_step ncu 100 ncu --clock-control none --set basic --csv --page raw \
  --kernel-name 'regex:kernel' --launch-count 40 --log-file "$out/ncu.csv" \
  "$python" -m benchmarks.gpu.every_kernel

gpu_step call_overhead 60 "$python" -m benchmarks.call_overhead --device cuda \
  --out "$out/call_overhead.json"
gpu_step kernels 150 "$python" -m benchmarks.kernels --device cuda --no-compile \
  --out "$out/kernels.json"
# With torch.compile, and the training step: STEPS='^(kernels_compiled|training_step)$' in a run of
# their own.
if [[ -n ${STEPS:-} ]]; then
  gpu_step kernels_compiled 540 "$python" -m benchmarks.kernels --device cuda \
    --out "$out/kernels_compiled.json"
  gpu_step training_step 300 "$python" -m benchmarks.training_step --device cuda \
    --out "$out/training_step.json"
fi
$gpu || step smoke 120 "$python" -m benchmarks.kernels --quick --no-compile --only loss \
  --out "$out/smoke.json"

"$python" -m benchmarks.gpu.verdict "$out"
