#!/usr/bin/env bash
# Brings .venv to what uv.lock says. Downloads. Decides only how uv itself is come by.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_PYTHON_DOWNLOADS=never # a Python that the machine's owner did not install is not ours to bring

stop() {
    echo "$1" >&2
    exit 2
}

# The machine's Python, not the one of an earlier .venv that make put first on the path.
PATH=${PATH//"$PWD/.venv/bin:"/}
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$python" -c "$new_enough" 2>/dev/null; then break; fi
done
"$python" -c "$new_enough" 2>/dev/null ||
    stop "make setup: Python 3.11 or newer is missing; install it and run this again."
command -v git >/dev/null || stop "make setup: git is missing; install it and run this again."

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
