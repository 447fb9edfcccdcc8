#!/usr/bin/env bash
# Brings .venv to what uv.lock says. Downloads. Decides only how uv itself is come by.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_PYTHON_DOWNLOADS=never # a Python that the machine's owner did not install is not ours to bring

stop() {
    echo "$1" >&2
    exit 2
}

python=${PYTHON:-python3}
command -v git >/dev/null || stop "make setup: git is missing; install it and run this again."
command -v "$python" >/dev/null || stop "make setup: Python 3.11 or newer is missing; install it and run this again."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "make setup: $("$python" --version) is too old; install Python 3.11 or newer and run this again."

# uv: the machine's own, else one in .tools that the rest of the machine never sees.
if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
    uv=(uv)
elif "$python" -m uv --version >/dev/null 2>&1; then
    uv=("$python" -m uv)
else
    if ! .tools/uv/bin/uv --version >/dev/null 2>&1; then
        "$python" -m venv .tools/uv 2>/dev/null ||
            stop "make setup: this Python cannot make a virtual environment; install its venv module (Debian: python3-venv)."
        .tools/uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
    fi
    uv=(.tools/uv/bin/uv)
fi

# The group `dev` comes along by default: whoever can start it can also test it.
"${uv[@]}" sync --quiet --locked --python "$python" --extra local
