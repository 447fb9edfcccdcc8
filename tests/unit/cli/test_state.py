"""The state directory: one holder, closed to others, and what it remembers."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli import ports
from services.cli.output import CommandFailed, Exit
from services.cli.state import Remembered, hold, holder, open_state, recall, remember, runtime_dir


def test_a_new_directory_is_closed_to_others(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state")

    assert 0o700 == stat.S_IMODE(state.root.stat().st_mode)
    assert 0o700 == stat.S_IMODE(state.keys.stat().st_mode)


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(CommandFailed) as refused:
        open_state(tmp_path / "open")

    assert Exit.USAGE == refused.value.status


def test_a_second_holder_is_told_the_firsts_pid(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state")
    with (
        hold(state),
        pytest.raises(CommandFailed, match=rf"pid {os.getpid()}\b") as refused,
        hold(state),
    ):
        pass

    assert Exit.FAILURE == refused.value.status


def test_nobody_holds_it_after_the_holder_left(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state")
    before = holder(state)
    with hold(state):
        during = holder(state)

    assert (None, os.getpid(), None) == (before, during, holder(state))


def test_a_plane_is_named_once(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state")

    assert recall(state) == recall(state)


def test_what_is_remembered_comes_back(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state")
    told = Remembered(
        plane_id="dp-1", proxy_port=1, control_port=2, feed_port=3, run_dir="/run/behavry-x"
    )
    remember(state, told)

    assert told == recall(state)


def test_sockets_lie_in_the_state_directory_where_their_paths_fit(tmp_path: Path) -> None:
    state = open_state(tmp_path / "s")

    assert state.root / "run" == runtime_dir(state, None)


def test_sockets_move_to_a_short_place_and_stay_there(tmp_path: Path) -> None:
    state = open_state(tmp_path / ("long" * 30))
    first = runtime_dir(state, None)
    second = runtime_dir(state, str(first))
    first.rmdir()

    assert first == second
    assert len(str(first)) < 60


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        yield int(busy.getsockname()[1])


NEW = Remembered(plane_id="dp-1")


def test_a_taken_port_is_named_together_with_the_flag(taken: int) -> None:
    with pytest.raises(CommandFailed, match=rf"{taken}.*--port-base") as refused:
        ports.choose(NEW, base=taken)

    assert Exit.FAILURE == refused.value.status


def test_zero_takes_free_ports_once_and_keeps_them() -> None:
    first = ports.choose(NEW, base=0)
    second = ports.choose(first, base=0)

    assert (first.proxy_port, first.control_port) == (second.proxy_port, second.control_port)
    assert 3 == len({first.proxy_port, first.control_port, first.feed_port})


def test_free_ports_are_none_that_a_connection_gets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as caller:
        caller.connect(listener.getsockname())
        given = min(listener.getsockname()[1], caller.getsockname()[1])

    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert given >= first > max(ports.free(20))


def test_remembered_ports_are_used_unless_others_are_asked_for() -> None:
    chosen = ports.choose(NEW, base=0)
    other = ports.choose(NEW, base=0)
    assert other.proxy_port is not None
    moved = ports.choose(chosen, base=None)

    assert (chosen.proxy_port, chosen.control_port) == (moved.proxy_port, moved.control_port)


def test_the_feeds_port_gives_way_when_it_is_taken(taken: int) -> None:
    chosen = ports.choose(Remembered(plane_id="dp-1", feed_port=taken), base=0)

    assert taken != chosen.feed_port
