#!/usr/bin/env bash
# Installs mwork-jax with what its tests need and runs them all. Arguments go to pytest: bash scripts/test.sh -m "not slow"
set -euo pipefail
source "$(dirname "$0")/environment.sh"
prepare_environment test
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m pyright --pythonpath "$PYTHON"
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
