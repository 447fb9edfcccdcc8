"""The stops of this machine: what the command writes is what the authorizer reads."""

import threading
from pathlib import Path

import pytest

from services.authorizer import kill_file
from services.authorizer.kill_switch import FLEET, Switch
from services.cli import local_stops, session
from services.cli.output import CommandFailed
from services.cli.session import Session
from services.cli.state import State
from tests.fakes.rest import RestControl
from tests.unit.cli.conftest import Run

AGENT = "01a1fe9f-73d2-7f92-8f33-7e1cbbb5a52d"


@pytest.fixture
def state(tmp_path: Path) -> State:
    root = tmp_path / "state"
    root.mkdir(mode=0o700, exist_ok=True)
    return State(root)


def _read(state: State) -> frozenset[Switch]:
    """As the authorizer does."""
    content = state.kill_file.read_bytes() if state.kill_file.exists() else None
    return frozenset() if content is None else kill_file.parse(content)


def _switch(
    state: State, scope: local_stops.Scope, subject: str = "", *, off: bool = False
) -> None:
    local_stops.switch(state, scope=scope, subject=subject, reason="drill", off=off)


def test_each_scope_is_understood_and_taken_back(state: State) -> None:
    expected = {
        Switch(scope="agent", subject=AGENT),
        Switch(scope="class", subject="crawlers"),
        Switch(scope="server", subject="git"),
        Switch(scope="tenant", tenant="default"),
        FLEET,
    }
    told: list[tuple[local_stops.Scope, str]] = [
        ("agent", AGENT),
        ("class", "crawlers"),
        ("server", "git"),
        ("tenant", "default"),
        ("fleet", ""),
    ]
    for scope, subject in told:
        _switch(state, scope, subject)
    on = _read(state)
    mode = state.kill_file.stat().st_mode & 0o777
    for scope, subject in told:
        _switch(state, scope, subject, off=True)

    assert expected == on
    assert 0o600 == mode
    assert not state.kill_file.exists()


def test_twice_is_once(state: State) -> None:
    _switch(state, "server", "git")
    _switch(state, "server", "git")

    assert 1 == len(local_stops.stops(state))


def test_nothing_that_is_not_stopped_can_be_taken_back(state: State) -> None:
    with pytest.raises(CommandFailed):
        _switch(state, "server", "git", off=True)

    assert not state.kill_file.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "stops": []}',
        b'{"version": 1, "stops": [{"scope": "x"}]}',
    ],
)
def test_a_file_that_stops_all_goes_on_doing_so_until_that_is_taken_back(
    state: State, content: bytes
) -> None:
    state.kill_file.write_bytes(content)
    before = _read(state)
    _switch(state, "server", "git")
    during = _read(state)
    _switch(state, "fleet", off=True)

    assert {FLEET} == before
    assert {FLEET, Switch(scope="server", subject="git")} == during
    assert {Switch(scope="server", subject="git")} == _read(state)


def test_commands_at_the_same_time_lose_nobody_s_stop(state: State) -> None:
    threads = [
        threading.Thread(target=_switch, args=(state, "server", f"s{number}"))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {f"s{number}" for number in range(8)} == {one.subject for one in _read(state)}


def test_without_control_an_agent_is_stopped_by_its_id(
    run: Run, state_dir: Path, control: RestControl
) -> None:
    remembered = state_dir / "state.json"
    remembered.write_text(remembered.read_text().replace(str(control.port), "1"))
    by_name = run("agents", "suspend", "bot", "--local")
    by_id = run("agents", "suspend", AGENT, "--local", "--reason", "drill")
    fleet = run("kill", "--local", "--reason", "drill", "--confirm", "fleet")
    both = _read(State(state_dir))
    given_back = run("kill", "--local", "--off", "--confirm", "fleet")
    resumed = run("agents", "suspend", AGENT, "--local", "--off")

    assert (7, 0, 0, 0, 0) == (
        by_name.status,
        by_id.status,
        fleet.status,
        given_back.status,
        resumed.status,
    )
    assert {FLEET, Switch(scope="agent", subject=AGENT)} == both
    assert frozenset() == _read(State(state_dir))


def test_an_ended_session_is_not_in_the_way_of_a_stop(
    run: Run, state_dir: Path, control: RestControl
) -> None:
    url = f"http://127.0.0.1:{control.port}"
    session.keep(State(state_dir), Session(control_url=url, username="ada", token="bhv_us_old"))
    page = {"items": [{"id": AGENT, "name": "bot"}], "next_page_token": ""}
    control.answers["GET /api/v1/agents"] = (200, page)
    told = run("agents", "suspend", "bot", "--local")

    assert 0 == told.status
    assert {Switch(scope="agent", subject=AGENT)} == _read(State(state_dir))
    assert ["Bearer bhv_sk_local_a_b"] == [headers["authorization"] for *_, headers in control.seen]


@pytest.mark.parametrize(
    "options",
    [
        ("--local", "--confirm", "fleet"),
        ("--local", "--reason", "x"),
        ("--local", "--scope", "server", "--reason", "x", "--confirm", "server"),
        ("--off", "--reason", "x", "--confirm", "fleet"),
        ("--reason", "x", "--confirm", "fleet"),
    ],
)
def test_what_is_not_said_in_full_stops_nothing(
    run: Run, state_dir: Path, control: RestControl, options: tuple[str, ...]
) -> None:
    told = run("kill", *options)

    assert (2, [], False) == (told.status, control.seen, (state_dir / "kill").exists())
