#!/usr/bin/env bash
# The CUDA kernels in the emulator under AddressSanitizer and UndefinedBehaviorSanitizer: what values
# do not show, such as a read past a row's end that changes nothing. Only a part of the tests runs here,
# because everything takes ten times as long.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
cxx=${CXX:-g++}
export MARGIN_EXT_SIMT_SANITIZE=1

if reason=$("$python" -c 'from backends import simt; print(simt.missing() or "")') && [ -n "$reason" ]; then
  echo "Not run: $reason."
  exit 0
fi
"$python" -c 'from simt import kernel_library, toolchain; kernel_library.build(toolchain.SANITIZE)'

# The interpreter is not compiled for sanitizers, so their library has to come first. Python's own
# allocations are none of ours, hence no search for leaks.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0
export UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so)" \
  "$python" -m pytest -q -s -p no:cacheprovider -p no:faulthandler test_cuda_kernels_simt.py test_cuda_ops_simt.py \
  test_cuda_additive_margin_simt.py \
  -k "${TESTS:-every_cluster_size or layout_and_alignment or reductions or bad_labels or channel_factors \
      or scale_gradients or more_samples or additive_margin_with or additive_margin_at or ((dual_direction or every_variant) and dtype2)}" "$@"
