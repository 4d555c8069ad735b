#!/usr/bin/env bash
# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set that
# this processor runs: reads past a row's end, and arithmetic on NaN, infinities and huge numbers
# whose result a compiler may choose. A part of tests/functional.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python}
cxx=${CXX:-g++}
folder=$PWD/build/sanitized
rm -rf "$folder/tree"
mkdir -p "$folder/tree"

torch=$("$python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent)')
cmake=$("$python" -c 'import cmake, os; print(os.path.join(cmake.CMAKE_BIN_DIR, "cmake"))')
flags="-O1 -g1 -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all"
"$cmake" -S . -B "$folder/cmake" -G Ninja -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE=None \
  -DCMAKE_CXX_FLAGS="$flags" -DMARGIN_EXT_CUDA=off -DMARGIN_EXT_TORCH_DIR="$torch" >"$folder/log"
"$cmake" --build "$folder/cmake"

# A second package, with these libraries in it.
cp -R margin_ext "$folder/tree/margin_ext"
rm -rf "$folder/tree/margin_ext/lib"
"$cmake" --install "$folder/cmake" --prefix "$folder/tree/margin_ext/lib" >>"$folder/log"
cp -R pyproject.toml tests "$folder/tree"
cd "$folder/tree"
export PYTHONPATH="$folder/tree"

# The interpreter is not compiled for sanitizers, so their library has to come first. Python's own
# allocations are none of ours, hence no search for leaks.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0
export UBSAN_OPTIONS=print_stacktrace=1
preload="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so)"

with_sanitizers() { # instruction set, arguments of python
  LD_PRELOAD="$preload" MARGIN_EXT_INSTRUCTION_SET=$1 "$python" "${@:2}"
}

# The first set runs everywhere, so its failures are never taken for a set that is not run here.
for set in baseline avx2 avx512; do
  if [ $set != baseline ] && ! with_sanitizers $set -c \
    'import margin_ext; raise SystemExit(margin_ext.backend_info().cpu_instruction_set is None)'
  then
    echo "-- $set: not run by this processor"
    continue
  fi
  echo "-- $set"
  with_sanitizers $set -m pytest -q -p no:cacheprovider -p no:faulthandler \
    tests/functional/test_extremes.py tests/functional/test_numeric_range.py \
    tests/functional/test_layouts.py -k "${TESTS:-cpu and not large and (extremes or layouts or \
      (range and (float16 or 1e-30 or nan or second)))}" "$@"
done
