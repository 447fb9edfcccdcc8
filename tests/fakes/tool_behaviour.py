"""What the told tool server can be told (tool_server.py, tool_http.py)."""

from typing import Any

import msgspec


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What is not set is honest."""

    eras: tuple[str, ...] = ("modern", "legacy")
    hang: bool = False
    """Runs the call, then never answers it."""
    drop: bool = False
    """Runs the call, then closes the connection (stdio: ends) without an answer."""
    lie: str | None = None
    """`other_id`, `not_json`, `no_result`: an answer that is none. `twice` (streamed): two."""
    leak: str | None = None
    """Stands in the result's text."""
    status: int = 200
    """Answers calls with this HTTP status and no body."""
    descriptions: dict[str, str] = {}
    """Tools whose definition is another one now."""
    extra_tools: tuple[str, ...] = ()
    schemas: dict[str, dict[str, Any]] = {}
    """Tools whose input schema is another one."""
    ttl_ms: int = 0
    """How long its lists may be kept."""
    sessions: bool = False
    """Legacy: gives a session id, and answers 404 to requests without it."""

    prompts: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    """What else it offers, by name; templates and resources have URIs `note:NAME`."""
    page: int = 100
    """So many entries of these come at once."""
    logs: bool = False
    completes: bool = False
    """Whether it has these capabilities."""

    # Over HTTP alone:
    refuses: bool = False
    """Answers who speaks a dialect that it does not with 400, as strangers' servers do."""
    methods_status: dict[str, int] = {}
    """Method -> HTTP status, with no body."""
    redirect: str | None = None
    """Answers calls with a redirect to there."""
    encoding: str | None = None
    """Compresses answers to calls: `gzip`, `deflate`, `bare`, `bomb`, `cut`, or just says so."""
    stream: bool = False
    """Answers calls as event streams, and has streams to listen to."""
    notes: tuple[dict[str, Any], ...] = ()
    """Notifications before a streamed answer."""
    progress: int = 0
    """So many steps before a streamed answer, if the caller gave a token."""
    asks: tuple[dict[str, Any], ...] = ()
    """Requests to the client before a streamed answer, in whose text their answers stand."""
    held: bool = False
    """Answers calls when it is told not to hold them any more."""
    breaks: int = 0
    """So often a stream ends before its answer; events have ids, and it can be taken up again."""
    retry_ms: int = 0
    """Events have ids and say how long to wait."""
