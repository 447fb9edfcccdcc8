"""BehavryError <-> google.rpc.Status with ErrorInfo. Callers see reasons, never exception text."""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.common.errors import BehavryError

DOMAIN: Final = "behavry"

_CODES: Final[dict[str, int]] = {
    "DEADLINE_REQUIRED": code_pb2.INVALID_ARGUMENT,
    "INVALID_ARGUMENT": code_pb2.INVALID_ARGUMENT,
    "INVALID_FILTER": code_pb2.INVALID_ARGUMENT,
    "INVALID_PAGE_TOKEN": code_pb2.INVALID_ARGUMENT,
    "INPUT_INVALID": code_pb2.INVALID_ARGUMENT,
    "RECORD_INVALID": code_pb2.INVALID_ARGUMENT,
    "TENANT_UNSET": code_pb2.INVALID_ARGUMENT,
    "FEATURE_UNKNOWN": code_pb2.INVALID_ARGUMENT,
    "OVERRIDE_CONFLICT": code_pb2.INVALID_ARGUMENT,
    "PEER_UNAUTHENTICATED": code_pb2.UNAUTHENTICATED,
    "UNAUTHENTICATED": code_pb2.UNAUTHENTICATED,
    "PEER_NOT_ALLOWED": code_pb2.PERMISSION_DENIED,
    "SOURCE_FOREIGN": code_pb2.PERMISSION_DENIED,
    "FEATURE_NOT_INCLUDED": code_pb2.PERMISSION_DENIED,
    "OVERRIDE_EXCEEDS_LICENSE": code_pb2.PERMISSION_DENIED,
    "NOT_FOUND": code_pb2.NOT_FOUND,
    "TENANT_UNKNOWN": code_pb2.NOT_FOUND,
    "VERIFY_UNKNOWN": code_pb2.NOT_FOUND,
    "UNKNOWN_SERVER": code_pb2.NOT_FOUND,
    "LICENSE_OLDER": code_pb2.ALREADY_EXISTS,
    "CHAIN_FENCED": code_pb2.ABORTED,
    "STALE_REVISION": code_pb2.ABORTED,
    "NO_TIME_LEFT": code_pb2.DEADLINE_EXCEEDED,
    "RATE_LIMITED": code_pb2.RESOURCE_EXHAUSTED,
    "OVERLOADED": code_pb2.RESOURCE_EXHAUSTED,
    "DEPENDENCY_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "POLICY_MISSING": code_pb2.UNAVAILABLE,
    "ESCALATION_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "INTERNAL": code_pb2.INTERNAL,
}


class Status(grpc.Status):
    """What `context.abort_with_status` takes."""

    def __init__(self, error: BehavryError) -> None:
        info = error_details_pb2.ErrorInfo(
            reason=error.reason, domain=DOMAIN, metadata=error.metadata
        )
        detail = any_pb2.Any()
        detail.Pack(info)
        number = _CODES.get(error.reason, code_pb2.FAILED_PRECONDITION)
        packed = status_pb2.Status(code=number, message=error.message, details=[detail])
        self.code = _STATUS_CODES[number]
        self.details = error.message
        self.trailing_metadata = (("grpc-status-details-bin", packed.SerializeToString()),)


_STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def known(failure: grpc.aio.AioRpcError) -> BehavryError:
    """The error that the other side raised; a transport failure reads DEPENDENCY_UNAVAILABLE."""
    for key, value in failure.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            packed = status_pb2.Status.FromString(value)
            for detail in packed.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return BehavryError(info.reason, packed.message, **dict(info.metadata))
    if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return BehavryError("NO_TIME_LEFT", "the other service did not answer in time")
    return BehavryError(
        "DEPENDENCY_UNAVAILABLE", "the other service cannot be reached", status=failure.code().name
    )
