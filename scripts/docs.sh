#!/usr/bin/env bash
# Installs what the documentation needs and builds it as files that a browser opens from disk, in docs/_build. Whatever
# Sphinx would warn of is an error. Arguments go to Sphinx: bash scripts/docs.sh -E
set -euo pipefail
source "$(dirname "$0")/environment.sh"
prepare_environment docs
"$PYTHON" -m sphinx -W --keep-going -q -b html docs docs/_build "$@"
echo "docs/_build/index.html"
