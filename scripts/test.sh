#!/usr/bin/env bash
# Installs mwork-jax with what its tests need and runs them all. Arguments go to pytest: bash scripts/test.sh -m "not slow"
set -euo pipefail
source "$(dirname "$0")/environment.sh"
prepare_environment test
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
types="$(mktemp)"
trap 'rm -f "$types"' EXIT
"$PYTHON" -m pyright --pythonpath "$PYTHON" > "$types" 2>&1 & # minutes on one core, beside the tests
pyright=$!
status=0
"$PYTHON" -m pytest -n 2 --dist loadgroup --no-loadscope-reorder "$@" || status=$?
wait "$pyright" || status=$?
cat "$types"
exit "$status"
