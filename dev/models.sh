#!/usr/bin/env bash
# Checks the models under docs/models with spin: the model itself holds, and each seeded fault that
# its file names is found. Results on stdout; status 1 if anything came out otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in spin cc; do
    command -v "$tool" >/dev/null || { echo "models: $tool is missing (packages: spin, gcc)" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# check MODEL FAULT: prints "errors: N", the sum of both passes (assertions, then liveness).
check() {
    local model=$1 fault=$2 errors=0 pass flags
    (
        cd "$work"
        rm -f pan*
        spin ${fault:+-D"$fault"} -a "$model" >spin.out || { cat spin.out >&2; exit 2; }
        for pass in safety liveness; do
            if [ "$pass" = safety ]; then
                cc -O2 -w -DSAFETY -DNOCLAIM -o pan pan.c
                flags=()
            else
                cc -O2 -w -DNFAIR=4 -o pan pan.c
                flags=(-a -f) # acceptance cycles, weak fairness
            fi
            ./pan "${flags[@]}" -n -m400000 >pan.out
            grep -q 'max search depth too small' pan.out && { echo "$pass: search cut short" >&2; exit 2; }
            found=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.out)
            echo "  $pass: $(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' pan.out) states, errors: $found" >&2
            errors=$((errors + found))
        done
        echo "$errors"
    )
}

failed=0
for model in "$PWD"/docs/models/*.pml; do
    name=$(basename "$model" .pml)
    echo "$name: as it is"
    errors=$(check "$model" "")
    [ "$errors" = 0 ] || { echo "$name: $errors errors, none expected"; failed=1; }
    faults=$(sed -nE 's/^#(if|elif|ifdef).*\b([A-Z]+(_[A-Z]+)+)\b.*/\2/p' "$model" | sort -u)
    for fault in $faults; do
        echo "$name: with the fault $fault"
        errors=$(check "$model" "$fault")
        [ "$errors" != 0 ] || { echo "$name: the fault $fault was not found"; failed=1; }
    done
done
exit "$failed"
