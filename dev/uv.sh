#!/usr/bin/env bash
# Runs uv: the machine's own, else one in .tools that the rest of the machine never sees (from PyPI,
# downloaded once). PYTHON names the interpreter that makes the latter.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
export UV_PYTHON_DOWNLOADS=never # a Python that the machine's owner did not install is not ours to bring

if uv --version >/dev/null 2>&1; then exec uv "$@"; fi
if "$python" -m uv --version >/dev/null 2>&1; then exec "$python" -m uv "$@"; fi
if ! "$root/.tools/uv/bin/uv" --version >/dev/null 2>&1; then
    "$python" -m venv "$root/.tools/uv" || {
        echo "make setup: this Python cannot make a virtual environment; install its venv module (Debian: python3-venv)." >&2
        exit 2
    }
    "$root/.tools/uv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.9' >&2
fi
exec "$root/.tools/uv/bin/uv" "$@"
