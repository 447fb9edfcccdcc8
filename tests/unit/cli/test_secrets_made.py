"""Secrets of an installation: made once, complete, closed to others, in the forms that readers
want.
"""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from joserfc.jwk import ECKey

from services.cli import secrets_made
from services.cli.state import State, open_state
from services.common.ids import NIL_TENANT
from services.common.outbox.digests import Digester
from services.common.postgres.embedded import write_secret


@pytest.fixture
def state(tmp_path: Path) -> State:
    return open_state(tmp_path / "state")


def _files(state: State) -> dict[str, bytes]:
    return {
        str(path.relative_to(state.root)): path.read_bytes()
        for path in sorted(state.root.rglob("*"))
        if path.is_file()
    }


def test_a_second_start_changes_nothing(state: State) -> None:
    secrets_made.make_all(state, plane_id="dp-1")
    first = _files(state)
    secrets_made.make_all(state, plane_id="dp-1")

    assert first == _files(state)


def test_a_lost_file_is_made_again_and_the_others_stay(state: State) -> None:
    secrets_made.make_all(state, plane_id="dp-1")
    first = _files(state)
    state.admin_password.unlink()
    secrets_made.make_all(state, plane_id="dp-1")
    second = _files(state)

    assert {"admin-password"} == {name for name in first if first[name] != second[name]}


def test_each_is_closed_to_others(state: State) -> None:
    secrets_made.make_all(state, plane_id="dp-1")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in state.root.rglob("*") if path.is_file()}

    assert {0o600} == modes


def test_no_two_are_the_same(state: State) -> None:
    secrets_made.make_all(state, plane_id="dp-1")
    values = [content for name, content in _files(state).items() if "trust" not in name]

    assert len(values) == len(set(values))


def test_an_existing_secret_is_never_overwritten_and_no_half_is_left(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with ThreadPoolExecutor(8) as threads:
        tried = [threads.submit(write_secret, path, f"{n}\n" * 1000) for n in range(8)]
        errors = [attempt.exception() for attempt in tried]

    assert 1 == errors.count(None)
    assert 1 == len(set(path.read_text().split()))
    assert [path] == list(tmp_path.iterdir())


def test_an_older_trust_root_is_completed_and_keeps_what_it_has(state: State) -> None:
    secrets_made.make_all(state, plane_id="dp-1")
    whole = json.loads(state.trust.read_bytes())
    older = {"version": 1, "roles": {"bundle": whole["roles"]["bundle"]}, "note": "ours"}
    state.trust.write_text(json.dumps(older))
    secrets_made.make_all(state, plane_id="dp-1")
    completed = state.trust.read_bytes()
    secrets_made.make_all(state, plane_id="dp-1")

    assert {**whole, "note": "ours"} == json.loads(completed)
    assert completed == state.trust.read_bytes()
    assert 0o600 == stat.S_IMODE(state.trust.stat().st_mode)


@pytest.mark.parametrize("role", secrets_made.TRUST_ROLES)
def test_each_role_is_trusted_for_its_own_key(state: State, role: str) -> None:
    secrets_made.make_all(state, plane_id="dp-1")
    (key,) = json.loads(state.trust.read_bytes())["roles"][role]["keys"]
    private = ECKey.import_key((state.keys / f"{role}.pem").read_bytes())

    assert private.thumbprint() == key["kid"]
    assert "d" not in key


def test_the_trust_root_names_the_public_half_alone(state: State) -> None:
    secrets_made.make_all(state, plane_id="dp-1")
    document = json.loads(state.trust.read_bytes())
    (key,) = document["roles"]["bundle"]["keys"]

    assert (1, 1) == (document["version"], document["roles"]["bundle"]["threshold"])
    assert {"kty", "crv", "x", "y", "kid", "use", "alg"} == set(key)


def test_control_knows_the_plane_by_its_public_half(state: State) -> None:
    secrets_made.make_all(state, plane_id="dp-1")
    document = json.loads(state.plane_keys.read_bytes())

    assert ["dp-1"] == list(document)
    assert "d" not in document["dp-1"]


def test_the_digest_keys_can_be_read(state: State) -> None:
    secrets_made.make_all(state, plane_id="dp-1")
    digest = Digester.load(state.keys / "digest.keys").make(NIL_TENANT, "arguments", b"{}")

    assert digest.startswith("h1:")
