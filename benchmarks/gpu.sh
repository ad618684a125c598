#!/usr/bin/env bash
# Run all GPU tests, comparisons and benchmarks in at most nine minutes: benchmarks/gpu.sh [--dry] OUT [STEP ...]
# The packages that 'make gpu-carry' collected in .gpu are installed first. Each step has its own time limit and writes
# OUT/STEP.json; the first two take at most three minutes. With --dry the steps are small and run on the CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
dry=
[ "${1-}" = --dry ] && { dry=--dry; shift; }
[ $# -ge 1 ] || { echo "usage: benchmarks/gpu.sh [--dry] OUT [STEP ...]" >&2; exit 2; }
out=$1
shift
wanted=" $* "  # the steps to run; all, if none is named
mkdir -p "$out" || exit 2
PYTHON=${PYTHON:-python3}
deadline=540
site=

if [ -z "$dry" ]; then
  site=$(mktemp -d)
  if compgen -G '.gpu/wheels/*.whl' >/dev/null; then
    "$PYTHON" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
      --target "$site" .gpu/wheels/*.whl || exit 1
  fi
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # the same bits in every run
[ -n "$dry" ] && export OMP_NUM_THREADS=1  # the machines that run this are shared
unset NVIDIA_TF32_OVERRIDE CUBLAS_EMULATE_DOUBLE_PRECISION CUBLAS_EMULATE_SINGLE_PRECISION CUBLAS_EMULATION_STRATEGY

# Install all missing packages together.
"$PYTHON" - <<'PYTHON' || exit 1
import importlib.util
names = "array_api_compat array_api_extra array_api_strict sybil flint numpy scipy torch hypothesis pytest mpmath \
safetensors threadpoolctl jinja2 typer rich cupy".split()
absent = [name for name in names if importlib.util.find_spec(name) is None]
print("not installed:", ", ".join(absent) or "nothing")
raise SystemExit(bool({"array_api_compat", "numpy", "scipy", "torch"} & set(absent)))
PYTHON

worst=0
step() {  # NAME SECONDS; or, dry, several names
  local left=$((deadline - SECONDS)) limit=$2
  [[ -n $dry || $wanted == "  " || $wanted == *" $1 "* ]] || return 0
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -lt 10 ]; then echo "== $1: no time left"; return; fi
  echo "== $1 (at $SECONDS s, up to $limit s)"
  # shellcheck disable=SC2086  # several names are several arguments
  timeout -k 10 "$limit" "$PYTHON" benchmarks/gpu.py $1 --out "$out" --seconds "$((limit - 5))" $dry || worst=1
}

if [ -n "$dry" ]; then
  step tests 300
  step "agreement cholesky alignment exploitation table3 jacobian mnist" 300  # one start for all of them
else
  step tests 120
  step agreement 60
  step cholesky 60
  step alignment 40
  step exploitation 40
  step table3 215
  step jacobian 60
  step mnist 540
fi
echo "== done at $SECONDS s"
exit $worst
