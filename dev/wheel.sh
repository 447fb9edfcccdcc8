#!/usr/bin/env bash
# Builds the wheel and runs the unit layer against it where the sources are out of reach: what is
# missing from the wheel (a migration, a policy, a generated stub) is missed here. Tests of the
# workshop itself are left out, since they are about the repository. Downloads what building needs.
set -euo pipefail
cd "$(dirname "$0")/.."
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
dev/uv.sh build --quiet --wheel --out-dir "$place/dist"
wheel=$(echo "$place"/dist/*.whl)

# The same versions as everywhere: from the lock file, but without the project itself.
dev/uv.sh export --quiet --locked --extra local --no-emit-project --output-file "$place/locked.txt" >/dev/null
dev/uv.sh venv --quiet --python .venv/bin/python "$place/venv"
dev/uv.sh pip install --quiet --python "$place/venv" --requirement "$place/locked.txt"
dev/uv.sh pip install --quiet --python "$place/venv" --no-deps "$wheel"

cp -r tests "$place/tests"
cp pyproject.toml "$place"
cd "$place"
# An empty `services` beside the tests would hide the wheel's; so would pythonpath = ".".
venv/bin/python -P -c 'import services, sys; sys.exit("site-packages" not in services.__file__)'
venv/bin/pytest -q -p no:cacheprovider -n 2 --dist loadfile \
    --ignore=tests/unit/test_lint_rules.py \
    --ignore=tests/unit/test_import_contracts.py \
    --ignore=tests/unit/test_promises.py \
    --ignore=tests/unit/test_plans_stay_apart.py \
    tests/unit
