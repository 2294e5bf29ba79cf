# Sourced by the other scripts: makes "$PYTHON" a Python >= 3.11 inside a virtual environment with this checkout installed.
# Uses the active environment; where none is active, makes .venv in the checkout and uses that.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

prepare_environment() { # $1: extras to install, e.g. demo
  if [ -n "${VIRTUAL_ENV:-}" ]; then
    PYTHON="$VIRTUAL_ENV/bin/python"
  else
    if [ ! -x .venv/bin/python ]; then
      local found=""
      for candidate in python3.13 python3.12 python3.11 python3; do
        if command -v "$candidate" > /dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
          found="$candidate"
          break
        fi
      done
      if [ -z "$found" ]; then
        echo "Python 3.11 or newer is needed; none was found on the PATH." >&2
        exit 2
      fi
      "$found" -m venv .venv
    fi
    PYTHON=".venv/bin/python"
  fi
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  "$PYTHON" -m pip install --quiet --editable ".[$1]"
}
