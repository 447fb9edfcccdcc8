#!/usr/bin/env bash
# Brings .venv to what uv.lock says. Downloads. Decides only which Python it stands on.
set -euo pipefail
cd "$(dirname "$0")/.."

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

# The group `dev` comes along by default: whoever can start it can also test it.
PYTHON=$python dev/uv.sh sync --quiet --locked --python "$python" --extra local
