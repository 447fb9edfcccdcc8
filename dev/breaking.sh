#!/usr/bin/env bash
# Compares the contracts with those of main, and on main itself with the commit before: what is
# there now must still be understood by what was there then (wire and JSON).
set -euo pipefail
cd "$(dirname "$0")/.."

head=$(git rev-parse --verify --quiet HEAD || true)
for against in ${BREAKING_AGAINST:-origin/main main HEAD^}; do
    commit=$(git rev-parse --verify --quiet "$against^{commit}" || true)
    [ -n "$commit" ] && [ "$commit" != "$head" ] || continue
    git cat-file -e "$commit:protos/behavry" 2>/dev/null || continue
    .venv/bin/buf breaking --against ".git#ref=$commit"
    echo "contracts: no breaking change since $against"
    exit 0
done
echo "contracts: nothing earlier to compare with"
