"""`behavry agents restrict`, `unrestrict`, `restrictions`: hold an agent to less for a while."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from services.cli.commands.agents import id_of
from services.cli.commands.options import JsonOption, StateOption, control_of
from services.cli.output import CommandFailed, Exit, emit, emit_text, say, table
from services.cli.rest import segment
from services.common.clock import SystemClock, rfc3339

Profile = Literal["read_only", "investigation", "wind_down", "custom"]
SessionOption = Annotated[
    str | None, Parameter("--session", help="One session's id; else all of the agent's.")
]
ReasonOption = Annotated[str, Parameter("--reason", help="Why; it is recorded.")]


def restrict(
    agent: str,
    /,
    *,
    profile: Annotated[
        Profile,
        Parameter(
            "--profile",
            help=(
                "read_only; investigation: reads at half the rate; wind_down: reads, then"
                " suspended; custom: what the other options say."
            ),
        ),
    ],
    reason: ReasonOption,
    until: Annotated[
        str | None, Parameter("--until", help="RFC 3339, such as 2030-01-31T12:00:00Z.")
    ] = None,
    hours: Annotated[float | None, Parameter("--hours", help="Or for how long from now.")] = None,
    tool: Annotated[
        list[str] | None,
        Parameter("--tool", negative=(), help="SERVER/TOOL it may call, * allowed."),
    ] = None,
    resource: Annotated[
        list[str] | None,
        Parameter("--resource", negative=(), help="How resources it may touch begin."),
    ] = None,
    max_arg_bytes: Annotated[
        int | None, Parameter("--max-arg-bytes", help="How large arguments may be.")
    ] = None,
    rate_factor: Annotated[
        float | None, Parameter("--rate-factor", help="0.5 halves its rate.")
    ] = None,
    session: SessionOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Hold an agent to less; what it may not do any more is refused as `restricted`."""
    said = {
        "tools": tool,
        "resources": resource,
        "max_arg_bytes": max_arg_bytes,
        "rate_factor": rate_factor,
        "session": session,
    }
    body: dict[str, Any] = {
        "profile": profile,
        "until": _until(until, hours),
        "reason": reason,
        **{name: value for name, value in said.items() if value is not None},
    }
    control = control_of(state)
    made = control.post(f"/api/v1/agents/{segment(id_of(control, agent))}:restrict", body)
    if json:
        emit(made)
    else:
        say(f"{agent}: {made['profile']} until {made['until']}")


def unrestrict(
    agent: str,
    /,
    *,
    reason: ReasonOption,
    session: SessionOption = None,
    state: StateOption = None,
) -> None:
    """Lift a restriction."""
    control = control_of(state)
    body = {"reason": reason} | ({} if session is None else {"session": session})
    control.post(f"/api/v1/agents/{segment(id_of(control, agent))}:unrestrict", body)
    say(f"{agent} is not restricted any more")


def restrictions(agent: str, /, *, state: StateOption = None, json: JsonOption = False) -> None:
    """List what an agent and its sessions are held to."""
    control = control_of(state)
    items = control.get(f"/api/v1/agents/{segment(id_of(control, agent))}/restrictions")["items"]
    if json:
        emit(items)
    else:
        columns = ("profile", "until", "session_id", "tools", "reason", "restricted_by")
        emit_text(table(items, *columns))


def _until(until: str | None, hours: float | None) -> str:
    if (until is None) == (hours is None):
        raise CommandFailed("say --until or --hours", status=Exit.USAGE)
    if until is not None:
        try:
            datetime.fromisoformat(until)
        except ValueError:
            raise CommandFailed(f"{until!r} is no time of RFC 3339", status=Exit.USAGE) from None
        return until
    assert hours is not None  # noqa: S101  # one of the two is there
    now = datetime.fromtimestamp(SystemClock().now_ns() // 1_000_000_000, UTC)
    try:
        then = now + timedelta(hours=hours)
    except (OverflowError, ValueError):
        raise CommandFailed("--hours is too large", status=Exit.USAGE) from None
    return rfc3339(int(then.timestamp()) * 1_000_000_000)
