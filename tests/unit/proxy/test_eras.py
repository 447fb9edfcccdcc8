"""Every row of the table of mcp.md 2.1."""

from typing import Any

import pytest

from services.proxy import eras
from services.proxy.answers import Rejection
from services.proxy.eras import CAPABILITIES_META, MODERN, NEWEST_LEGACY, VERSION_META, Route
from services.proxy.messages import Kind, Message

NEW = MODERN[0]
OLD = "2025-06-18"
LEGACY = Route("legacy", "", in_session=True)


def message(
    method: str = "tools/list", *, meta: dict[str, Any] | None = None, kind: Kind = Kind.REQUEST,
    **params: Any,
) -> Message:  # fmt: skip
    made = params if meta is None else {**params, "_meta": meta}
    return Message(kind, 1, method, made, has_params=bool(made))


def envelope(version: Any = NEW, **more: Any) -> dict[str, Any]:
    return {VERSION_META: version, CAPABILITIES_META: {}, **more}


ROUTED = {
    "modern, equal": (NEW, None, message(meta=envelope()), Route("modern", NEW)),
    "modern, session ignored": (NEW, "s", message(meta=envelope()), Route("modern", NEW)),
    "modern initialize is routed, then unknown": (
        NEW, None, message("initialize", meta=envelope()), Route("modern", NEW),
    ),
    "modern notification": (
        NEW, None, message("notifications/cancelled", kind=Kind.NOTIFICATION), Route("modern", NEW),
    ),
    "initialize, known version": (
        None, None, message("initialize", protocolVersion=OLD), Route("legacy", OLD, opening=True),
    ),
    "initialize, unknown version": (
        None, None, message("initialize", protocolVersion="2024-11-05"),
        Route("legacy", NEWEST_LEGACY, opening=True),
    ),
    "initialize, asked for modern": (
        OLD, None, message("initialize", protocolVersion=NEW),
        Route("legacy", NEWEST_LEGACY, opening=True),
    ),
    "initialize, no version": (
        "odd", None, message("initialize"), Route("legacy", NEWEST_LEGACY, opening=True),
    ),
    "session, header": (OLD, "s", message(), Route("legacy", OLD, in_session=True)),
    "session, no header": (None, "s", message(), LEGACY),
}  # fmt: skip

REJECTED = {
    "modern, nothing in the body": (NEW, None, message(), -32602),
    "modern, no meta version": (NEW, None, message(meta={CAPABILITIES_META: {}}), -32602),
    "modern, no capabilities": (NEW, None, message(meta={VERSION_META: NEW}), -32602),
    "modern, capabilities no object": (
        NEW, None, message(meta=envelope() | {CAPABILITIES_META: []}), -32602,
    ),
    "modern, other in the body": (NEW, None, message(meta=envelope(OLD)), -32020),
    "modern, null in the body": (NEW, None, message(meta=envelope(None)), -32020),
    "modern, number in the body": (NEW, None, message(meta=envelope(1)), -32020),
    "no header, version in the body": (None, None, message(meta=envelope()), -32020),
    "no header, version in the body, session": (None, "s", message(meta=envelope()), -32020),
    "legacy header, modern body": (OLD, "s", message(meta=envelope()), -32020),
    "unknown header, modern body": ("2027-01-01", None, message(meta=envelope()), -32020),
    "unknown header, equal body": (
        "2027-01-01", None, message(meta=envelope("2027-01-01")), -32022,
    ),
    "legacy header, equal body": (OLD, "s", message(meta=envelope(OLD)), -32022),
    "modern response": (
        NEW, None, message("", kind=Kind.RESPONSE), -32602,
    ),
    "unknown header, nothing in the body": ("2027-01-01", None, message(), -32022),
    "unknown header, session": ("2027-01-01", "s", message(), -32022),
    "a header that sorts high": ("zzzz", "s", message(), -32022),
    "legacy, no session": (OLD, None, message(), -32600),
    "nothing at all": (None, None, message(), -32600),
    "initialize as a notification": (
        None, None, message("initialize", kind=Kind.NOTIFICATION), -32600,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("header", "session", "given", "wanted"), ROUTED.values(), ids=ROUTED)
def test_an_era_is_told(
    header: str | None, session: str | None, given: Message, wanted: Route
) -> None:
    assert wanted == eras.route(header, session, given)


@pytest.mark.parametrize(("header", "session", "given", "code"), REJECTED.values(), ids=REJECTED)
def test_what_disagrees_with_itself_is_refused(
    header: str | None, session: str | None, given: Message, code: int
) -> None:
    found = eras.route(header, session, given)

    assert isinstance(found, Rejection)
    assert (400, code) == (found.status, found.code)


def test_a_client_is_told_which_versions_there_are() -> None:
    found = eras.route("2027-01-01", None, message())

    assert isinstance(found, Rejection)
    assert {"supported": list(eras.KNOWN), "requested": "2027-01-01"} == found.data


def test_who_names_a_legacy_version_like_a_modern_one_is_told_which_are_named_so() -> None:
    found = eras.route(OLD, None, message(meta=envelope(OLD)))

    assert isinstance(found, Rejection)
    assert {"supported": list(MODERN), "requested": OLD} == found.data


@pytest.mark.parametrize(
    ("header", "sealed", "ok"), [("", OLD, True), (OLD, OLD, True), (NEWEST_LEGACY, OLD, False)]
)
def test_a_session_keeps_its_version(header: str, sealed: str, ok: bool) -> None:
    settled = eras.settle(Route("legacy", header, in_session=True), sealed)

    assert ok == isinstance(settled, Route)
    if isinstance(settled, Route):
        assert sealed == settled.version
