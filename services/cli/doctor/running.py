"""Checks of what runs: processes, their gRPC health, HTTP doors, engine, bundle, keys, licence."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2

from services.cli import wire
from services.cli.doctor.checks import Check, Installation, fail, ok, unknown, warn
from services.cli.doctor.machine import marks
from services.cli.engines import find_opa
from services.cli.output import CommandFailed
from services.cli.ports import is_free
from services.cli.rest import Control, read_key

#: Each service, and what else it tells the health of.
SERVICES: Final = {
    "audit": ("dep.postgres",),
    "entitlements": (),
    "control": ("dep.postgres",),
    "authorizer": (),
    "proxy": (),
}
#: Others that `up` may have started, and that tell their health, too.
OPTIONAL: Final = ("stdio-host",)
TIMEOUT_S: Final = 2.0
EXPIRY_WARN_DAYS: Final = 7  # control.md 8: LicenseExpiring
BUNDLE_WARN_S: Final = 60  # control.md 8: the objective
BUNDLE_FAIL_S: Final = 300  # deployment.md 3.5: stale
_START: Final = "behavry up"


def processes(installation: Installation) -> Iterator[Check]:
    """What `up` says of its children."""
    if installation.running is None:
        yield fail("processes", "nothing runs here", _START)
        return
    for name, facts in _running(installation).items():
        if not facts["ready"]:
            log = installation.state.log_of(name)
            yield fail(f"processes.{name}", "it is not ready", f"see {log}")
        elif facts["starts"] > 3:
            why = f"ready, but started {facts['starts']} times"
            yield warn(f"processes.{name}", why, f"see {installation.state.log_of(name)}")
        else:
            yield ok(f"processes.{name}", "ready")


def _running(installation: Installation) -> dict[str, Any]:
    """What `up` says of its children, by name."""
    found: dict[str, Any] = installation.document.get("processes", {})
    return found


def ports(installation: Installation) -> Iterator[Check]:
    """While nothing runs: whether the remembered addresses could be taken again."""
    if installation.running is not None:
        return
    known = installation.remembered
    taken = [
        port
        for port in (known.proxy_port, known.control_port)
        if port is not None and not is_free(port)
    ]
    if taken:
        why = f"somebody else listens on {', '.join(map(str, taken))}"
        yield fail("ports", why, "end that program, or behavry up --port-base N")
    else:
        yield ok("ports", "the remembered ports are free")


def grpc_health(installation: Installation) -> Iterator[Check]:
    """grpc.health.v1 on each socket, and what each process says of what it depends on."""
    known = SERVICES | {name: () for name in OPTIONAL if name in _running(installation)}
    for name, depends in known.items():
        if installation.running is None:
            yield unknown(f"grpc.{name}", "nothing runs")
            continue
        socket = installation.run_dir / f"{name}.sock"
        down = [one for one in ("", *depends) if not _serves(socket, one)]
        if down:
            told = ", ".join(one or "it does not answer as serving" for one in down)
            log = installation.state.log_of(name)
            yield fail(f"grpc.{name}", f"not serving: {told}", f"see {log}")
        else:
            yield ok(f"grpc.{name}", " and ".join(["serving", *depends]))


def _serves(socket: Path, name: str) -> bool:
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def http(installation: Installation) -> Iterator[Check]:
    """The two addresses that people and agents know."""
    for name, port in (
        ("proxy", installation.remembered.proxy_port),
        ("control", installation.remembered.control_port),
    ):
        door, url = f"http.{name}", f"http://127.0.0.1:{port}"
        try:
            answer = wire.send("GET", f"{url}/readyz", timeout_s=TIMEOUT_S)
        except wire.Unreachable:
            why = f"nothing answers at {url}"
            yield fail(
                door, why, _START if installation.running is None else f"see the {name}'s log"
            )
            continue
        if answer.status >= 300:
            why = f"{url} is not ready ({answer.status})"
            yield fail(door, why, f"see {installation.state.log_of(name)}")
        else:
            yield ok(door, f"ready at {url}")


def engine(installation: Installation) -> Iterator[Check]:
    """The policy engine that decides, and whether the better one could."""
    chosen = installation.document.get("engine")
    if chosen is None:
        yield unknown("engine", "nothing runs")
    elif chosen == "opa":
        yield ok("engine", "OPA")
    elif find_opa() is not None:
        why = "the embedded engine decides, though there is an opa binary"
        yield warn("engine", why, "behavry up --engine opa")
    else:
        yield ok("engine", "embedded (for one machine; `make tools` brings OPA)")


def bundle(installation: Installation) -> Iterator[Check]:
    """How long ago control last confirmed the policy that is being applied."""
    found = marks(installation)
    if not found.get("max_serial"):
        yield fail(
            "bundle", "no bundle was ever accepted", "see the logs of control and authorizer"
        )
        return
    age = max(0, installation.now_s - found.get("confirmed_s", 0))
    why = f"serial {found['max_serial']}, confirmed {age} s ago"
    if installation.running is None:
        yield unknown("bundle", f"{why}; nothing runs")
    elif age >= BUNDLE_FAIL_S:
        yield fail("bundle", why, "see the authorizer's log: it cannot fetch policies from control")
    elif age >= BUNDLE_WARN_S:
        yield warn("bundle", why, "see the authorizer's log, if this goes on")
    else:
        yield ok("bundle", why)


def jwks(installation: Installation) -> Iterator[Check]:
    """The keys that check agents' tokens."""
    url = f"http://127.0.0.1:{installation.remembered.control_port}/.well-known/jwks.json"
    try:
        answer = wire.send("GET", url, timeout_s=TIMEOUT_S)
        document: Any = answer.json() if answer.status == 200 else None
    except wire.Unreachable:
        yield unknown("jwks", "control does not answer")
        return
    except CommandFailed:
        document = None
    keys = document.get("keys") if isinstance(document, dict) else None
    if keys:
        yield ok("jwks", f"{len(keys)} keys at {url}")
    else:
        yield fail("jwks", f"no keys at {url}", f"see {installation.state.log_of('control')}")


def plan(installation: Installation) -> Iterator[Check]:
    """The plan, as control tells it to the installation's own API key."""
    try:
        held = _as_machine(installation).get("/api/v1/license")
    except wire.Unreachable:
        yield unknown("license", "control does not answer")
        return
    except CommandFailed as refused:
        yield fail("license", f"control refuses the installation's API key: {refused}", _KEY_FIX)
        return
    why = f"{held['plan']} ({held['status']})"
    if held["stale"]:
        yield warn("license", f"{why}, as it was said last", "see the log of entitlements")
    elif _days_left(held, installation.now_s) <= EXPIRY_WARN_DAYS:
        yield warn("license", f"{why}, until {held['expires_at']}", "behavry license show")
    else:
        yield ok("license", why)


def notifications(installation: Installation) -> Iterator[Check]:
    """Whether people outside hear of what waits for them."""
    try:
        health = _as_machine(installation).get("/api/v1/settings/notifications/health")
    except CommandFailed:
        yield unknown("notifications", "control does not tell")
        return
    if health["failing"]:
        why = f"{health['failing']} of {health['enabled']} fail since {health['failing_since']}"
        yield warn("notifications", why, "behavry notifications list, then test NAME")
    elif health["enabled"]:
        yield ok("notifications", f"{health['enabled']} destinations are told")
    else:
        yield ok("notifications", "nobody outside is told (behavry notifications add --help)")


def _as_machine(installation: Installation) -> Control:
    return Control(
        url=f"http://127.0.0.1:{installation.remembered.control_port}",
        credential=read_key(installation.state.admin_api_key),
    )


def _days_left(held: dict[str, Any], now_s: int) -> float:
    until = held["expires_at"]
    if until is None:
        return float("inf")
    return (datetime.fromisoformat(until).timestamp() - now_s) / 86_400


_KEY_FIX: Final = (
    "bring the file admin-api-key back, or sign in (`behavry login`) and make a new key"
)
