"""Every name that leaves a process. Counters are a typed list, so that a typo is a type
error; it is also the documentation.

`behavry_` and the unit are added at export (`behavry_decide_messages_total`).
"""

from __future__ import annotations

from typing import Final, Literal

CounterName = Literal[
    # proxy
    "proxy.calls",  # tool calls that entered the pipeline
    "proxy.allowed",
    "proxy.denied",
    "proxy.held",  # calls that began to wait for a person
    "proxy.rejected",  # refused before the pipeline (malformed, over a limit)
    "proxy.auth.failed",
    "proxy.upstream.connections",  # new connections to tool servers
    "proxy.upstream.requests",
    "proxy.upstream.tokens",  # asked of servers' token endpoints
    "proxy.upstream.dropped",
    "proxy.asked.relayed",
    "proxy.asked.refused",
    "proxy.letters.refused",  # of other proxies, it said: forged, old, or taken before
    "proxy.control.requests",  # relayed token requests and key trades
    "proxy.admission.refused",  # entry checks 1-4: counted, not recorded
    "proxy.decide.asks",
    "proxy.decide.messages",  # messages written to the Decide stream
    "proxy.decide.timeouts",
    "proxy.decide.streams",  # Decide streams opened
    # authorizer
    "authorizer.asks",
    "authorizer.decisions.allow",
    "authorizer.decisions.deny",
    "authorizer.decisions.intercept",
    "authorizer.engine.queries",
    "authorizer.engine.items",
    "authorizer.engine.items_in_batches_of_8",  # items of queries that carried eight or more
    "authorizer.engine.input_bytes",
    "authorizer.engine.failures",
    "authorizer.engine.connections",
    "authorizer.bundles.activated",
    "authorizer.bundles.rejected",
    "authorizer.escalations.opened",
    "authorizer.escalations.refused",
    # outbox: in proxy, authorizer and control
    "outbox.records",
    "outbox.syncs",  # fdatasync calls
    "outbox.sync_groups",
    "outbox.bytes",
    "outbox.usage_bytes",
    "outbox.pending",  # records not yet acknowledged by audit
    "outbox.shipped",
    # audit
    "audit.appended",
    "audit.duplicates",
    "audit.rejected",
    "audit.transactions",
    "audit.fenced",
    # control
    "control.notifications.delivered",
    "control.notifications.failed",  # attempts, not notices
    "entitlement.bypass",  # requests of super-admins that the tenant's plan does not include
    # everywhere
    "postgres.statements",
    "postgres.connections",
    "rpc.calls",
    "rpc.refused",
    "entitlements.calls",  # unary calls made to entitlements
]

#: Names of the list that go down as well as up.
LEVELS: Final[frozenset[CounterName]] = frozenset({"outbox.usage_bytes", "outbox.pending"})

# Attributes of a tool call's span (OpenTelemetry semantic conventions for MCP; ours begin with
# `behavry.`). Arguments and results have names there too, which are never set.
MCP_METHOD: Final = "mcp.method.name"
TOOL: Final = "gen_ai.tool.name"
DECISION: Final = "behavry.decision"
REASON: Final = "behavry.reason_code"
REVISION: Final = "behavry.policy.revision"
