#!/bin/bash
# Everything worth knowing on one GPU (an H100) within ten minutes: the tests that need one, then the benchmark.
# Writes runs/gpu_report/: tests.txt, bench.json and bench.md (the table). Run from the repository after make setup.
set -u
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-runs/gpu_report}
mkdir -p "$OUT"
nvidia-smi > "$OUT/device.txt" || { echo "error: no CUDA device (nvidia-smi fails)"; exit 2; }

timeout 180 "$PYTHON" -m pytest -m gpu -q 2>&1 | tee "$OUT/tests.txt"
TESTS=${PIPESTATUS[0]}

# The fast rows first: a run that is cut off has them. Eight blocks a call fill the device.
timeout 400 "$PYTHON" -m ctflow.bench output="$OUT/bench.json" peak_side=8192 batch_size=8 repeats=5 \
    "rows=[fmvt,avae,steps,beside,stream,memory,generation]" "lengths=[64,256,1024]" "batches=[8,32]"
BENCH=$?
echo "tests: status $TESTS; benchmark: status $BENCH; table: $OUT/bench.md"
[ "$TESTS" = 0 ] && [ "$BENCH" = 0 ]
