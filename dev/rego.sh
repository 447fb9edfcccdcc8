#!/usr/bin/env bash
# Policies that ship with the product: `fmt` formats them, `check` wants them formatted, strict and
# with passing tests.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v opa >/dev/null || {
    echo "rego: opa is missing; run \`make tools\`" >&2
    exit 2
}
mapfile -t files < <(find services -name '*.rego' | sort)
[ ${#files[@]} -gt 0 ] || exit 0

case ${1:-check} in
fmt) opa fmt --write "${files[@]}" ;;
check)
    opa fmt --list --fail "${files[@]}"
    opa check --strict "${files[@]}"
    opa test "${files[@]}"
    if command -v regal >/dev/null; then regal lint "${files[@]}"; fi
    echo "rego: ${#files[@]} files formatted, strict, tested"
    ;;
esac
