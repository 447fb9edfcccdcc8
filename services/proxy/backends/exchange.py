"""One request to a tool server over HTTP, and everything that is said on its streams (mcp.md 7).

Decides which message answers it, what is heard beside the answer, what is dropped, and what an HTTP
answer means. Sending, and taking up a stream that broke off, is streamable.py's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from services.common.sse import EventParser, EventTooLong
from services.common.telemetry.counters import Counter
from services.proxy import messages
from services.proxy.answers import UNSUPPORTED_VERSION
from services.proxy.backends.connection import Response
from services.proxy.backends.conversation import PROGRESS, read_heard
from services.proxy.backends.upstream import (
    MAX_ANSWER,
    MODERN_CODES,
    Hear,
    Heard,
    Reply,
    SessionGone,
    UpstreamFailed,
)
from services.proxy.messages import METHOD_NOT_FOUND

#: Of these, the one that a modern server should not give us once it was met.
OTHER_VERSION: Final = frozenset({UNSUPPORTED_VERSION})
#: How a server that does not know our dialect refuses (mcp.md 2.2).
NOT_UNDERSTOOD: Final = frozenset({400, 404, 405})
RETRY_S: Final = 1.0

#: Sends the server an answer to a request of its own, without waiting.
Respond = Callable[[Mapping[str, Any]], None]


class Exchange:
    """`number` is the request's id; None where a stream is only listened to."""

    __slots__ = (
        "_asks", "_dropped", "_failure", "_hear", "_number", "_parser", "_progress",
        "_respond", "answer", "era_shaped", "events",
    )  # fmt: skip

    def __init__(
        self,
        number: int | None,
        dropped: Counter,
        respond: Respond,
        *,
        hear: Hear | None,
        asks: bool,
        progress: int | str | None = None,
    ) -> None:
        self._number = number
        self._dropped = dropped
        self._respond = respond
        self._hear = hear
        #: Whether its requests may be heard; else they are refused.
        self._asks = asks
        self._progress = progress
        self._parser: EventParser | None = None
        self._failure = ""
        self.answer: dict[str, Any] | None = None
        #: How many came; a stream that brings none is taken up less often.
        self.events = 0
        #: The server answers as one of the other era would.
        self.era_shaped = False

    # --- streams --------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> bool:
        """Bytes of an event stream; True when nothing more of it is wanted."""
        if self._parser is None:
            self._parser = EventParser(MAX_ANSWER)
        try:
            for data in self._parser.feed(chunk):
                self.events += 1
                if data.strip():
                    self._take(messages.decode(data))
        except EventTooLong:
            self._failure = "inbound_blocked"
        except messages.Malformed:
            self._failure = "upstream_protocol"
        return self.answer is not None or bool(self._failure)

    @property
    def event_id(self) -> str:
        """By which the stream could be taken up again; empty where it cannot."""
        ended = self.answer is not None or self._failure or self._parser is None
        return "" if ended or self._parser is None else self._parser.event_id

    @property
    def retry_s(self) -> float:
        parser = self._parser
        return RETRY_S if parser is None or parser.retry_ms is None else parser.retry_ms / 1000

    def again(self) -> None:
        """Another stream follows, which goes on where the last one broke off."""
        if self._parser is not None:
            self._parser.again()

    # --- answers --------------------------------------------------------------------------------

    def reply(self, response: Response, *, modern: bool, in_session: bool = False) -> Reply:
        """What an HTTP answer says. Raises UpstreamFailed."""
        status = response.status
        if status == 404 and in_session:
            raise SessionGone
        if status in {401, 403}:
            raise UpstreamFailed("upstream_auth", ran=False, status=status)
        if status == 429:
            raise UpstreamFailed("upstream_rate_limited", ran=False, status=status)
        if not response.streams and not response.unreadable:
            self._read_body(response)
        answer = self.answer
        if answer is not None:
            if type(answer.get("result")) is dict and 200 <= status < 300:
                return Reply(answer["result"], None, status)
            error = answer.get("error")
            if type(error) is dict and type(error.get("code")) is int:
                self.era_shaped = error["code"] in (OTHER_VERSION if modern else MODERN_CODES)
                return Reply(None, error, status)
        self.era_shaped = status in NOT_UNDERSTOOD
        if status in {502, 503, 504}:
            raise UpstreamFailed("upstream_unreachable", ran=None, status=status)
        raise UpstreamFailed(self._failure or "upstream_protocol", ran=None, status=status)

    def _read_body(self, response: Response) -> None:
        try:
            tree = messages.decode(bytes(response.body))
        except messages.Malformed:
            return
        self._take(tree)
        refused = response.status >= 400 and type(tree) is dict and tree.get("id") is None
        if refused and self.answer is None:  # it could not tell which request it refuses
            error = tree.get("error")
            if type(error) is dict and error.get("code") in MODERN_CODES:
                self.answer = tree

    # --- messages -------------------------------------------------------------------------------

    def _take(self, tree: Any) -> None:
        """One message, or a batch of 2025-03-26."""
        for one in messages.split(tree):
            if type(one) is not dict:
                self._dropped.value += 1
            elif "method" in one:
                self._heard(one)
            elif self._is_answer(one):
                self.answer = one
            else:
                self._dropped.value += 1  # another id, or a second answer

    def _is_answer(self, message: dict[str, Any]) -> bool:
        given = message.get("id")
        ours = type(given) is int and given == self._number and self.answer is None
        return ours and ("result" in message or "error" in message)

    def _heard(self, message: dict[str, Any]) -> None:
        heard = read_heard(message, self._parser.event_id if self._parser else "")
        if heard is None or self.answer is not None:
            self._dropped.value += 1
        elif heard.id is not None:
            self._heard_request(heard)
        elif self._hear is not None:
            self._heard_notification(self._hear, heard)

    def _heard_request(self, heard: Heard) -> None:
        if heard.method == "ping":
            self._respond({"id": heard.id, "result": {}})
        elif self._asks and self._hear is not None:
            self._hear(heard)
        else:
            error = {"code": METHOD_NOT_FOUND, "message": "not supported"}
            self._respond({"id": heard.id, "error": error})

    def _heard_notification(self, hear: Hear, heard: Heard) -> None:
        if heard.method != PROGRESS:
            hear(heard)
            return
        token = heard.params.get("progressToken")
        if self._progress is None or type(token) is not int or token != self._number:
            self._dropped.value += 1
            return
        hear(replace(heard, params={**heard.params, "progressToken": self._progress}))
