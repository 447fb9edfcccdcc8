"""Reasons: one catalogue, in the contract."""

import ast
from pathlib import Path

import grpc
import pytest

import services
from behavry.common.v1 import error_reason_pb2
from services.common.errors import BehavryError
from services.common.rpc import errors
from services.common.rpc.errors import Status, known

SERVICES = Path(services.__path__[0])
CATALOGUE = {name.removeprefix("ERROR_REASON_") for name, _ in error_reason_pb2.ErrorReason.items()}


def raised_reasons() -> dict[str, str]:
    """Reason -> the place that raises it, for every literal in the services."""
    found: dict[str, str] = {}
    for file in sorted(SERVICES.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(
                    func=ast.Name(id="BehavryError" | "Refusal"),
                    args=[ast.Constant(value=str(reason)), *_],
                ):
                    found[reason] = f"{file.relative_to(SERVICES)}:{node.lineno}"
    return found


def test_every_reason_that_is_raised_stands_in_the_contract() -> None:
    raised = raised_reasons()

    assert {} == {reason: at for reason, at in raised.items() if reason not in CATALOGUE}
    assert len(raised) > 20


def test_every_reason_with_a_status_of_its_own_stands_in_the_contract() -> None:
    assert set() == set(errors._CODES) - CATALOGUE


def test_rest_spells_a_reason_in_lower_case() -> None:
    assert "policy_rejected" == BehavryError("POLICY_REJECTED", "no").code


def answered(metadata: object) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*metadata),  # type: ignore[misc]  # pairs, as abort sends them
    )


def test_a_reason_crosses_the_wire_with_its_metadata() -> None:
    status = Status(BehavryError("STALE_REVISION", "read it again", revision="7"))
    error = known(answered(status.trailing_metadata))

    assert grpc.StatusCode.ABORTED is status.code
    assert ("STALE_REVISION", "read it again") == (error.reason, error.message)
    assert {"revision": "7"} == error.metadata


def test_a_reason_without_a_status_of_its_own_is_a_failed_precondition() -> None:
    assert grpc.StatusCode.FAILED_PRECONDITION is Status(BehavryError("POLICY_EXPIRED", "")).code


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "NO_TIME_LEFT"),
        (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"),
        (grpc.StatusCode.UNIMPLEMENTED, "DEPENDENCY_UNAVAILABLE"),
    ],
)
def test_a_failure_of_the_transport_has_a_reason_too(code: grpc.StatusCode, reason: str) -> None:
    failure = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "text of theirs")
    error = known(failure)

    assert reason == error.reason
    assert "theirs" not in error.message
