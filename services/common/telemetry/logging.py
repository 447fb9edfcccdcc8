"""JSON log lines on stdout. Drops what must never be logged, by key and by pattern, and lines that
nobody can take: a full disk under the log must not fail whoever has something to say.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final, TextIO, cast

import structlog

Log = structlog.typing.FilteringBoundLogger

_FORBIDDEN_KEYS: Final = frozenset(
    {
        "arguments", "result", "payload", "body", "headers", "authorization", "cookie",
        "token", "secret", "password", "client_secret", "api_key", "params",
    }
)  # fmt: skip
_SECRET_LIKE: Final = re.compile(
    r"bhv_[a-z]+_[\w.\-]+|eyJ[\w\-]{8,}\.[\w\-]+\.[\w\-]*|(?i:bearer)\s+\S+|://[^/\s:@]+:[^@/\s]+@"
)


def configure(level: str = "info") -> None:
    """Once per process, before the first line."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redact,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Patient(sys.stdout))),
        cache_logger_on_first_use=True,
    )
    if not any(isinstance(handler, Foreign) for handler in logging.root.handlers):
        logging.root.addHandler(Foreign(logging.WARNING))


class _Patient:
    """A file whose writer never hears that it takes nothing."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()


class Foreign(logging.Handler):
    """What libraries log. Their texts quote exceptions, and those quote payloads: only who spoke,
    from where, and which exception leaves.
    """

    def emit(self, record: logging.LogRecord) -> None:
        failure = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().warning(
            "library_log",
            logger=record.name,
            severity=record.levelname.lower(),
            place=f"{record.module}:{record.lineno}",
            error=describe(failure) if failure else None,
        )


def get_log(service: str) -> Log:
    return cast("Log", structlog.get_logger(service=service))


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The processor that keeps payloads and secrets out, whoever wrote the line."""
    for key, value in event.items():
        event[key] = _shown(key, value)
    return event


def _shown(key: str, value: Any) -> Any:
    if key.lower() in _FORBIDDEN_KEYS:
        return "[redacted]"
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return _SECRET_LIKE.sub("[redacted]", value)
        case bytes() | bytearray() | memoryview():
            return f"[{len(value)} bytes]"
        case Mapping():
            return {
                _SECRET_LIKE.sub("[redacted]", str(inner)): _shown(str(inner), entry)
                for inner, entry in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [_shown("", entry) for entry in value]
        case BaseException():
            return describe(value)
        case _:
            return _SECRET_LIKE.sub("[redacted]", str(value))


def describe(failure: BaseException) -> str:
    """Class names and code places of an exception and its causes; never its text, which may quote
    a payload.
    """
    parts: list[str] = []
    seen: BaseException | None = failure
    while seen is not None and len(parts) < 5:
        frames = traceback.extract_tb(seen.__traceback__)[-3:]
        places = " < ".join(
            f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames)
        )
        parts.append(f"{type(seen).__module__}.{type(seen).__qualname__} at {places or '?'}")
        seen = seen.__cause__ or seen.__context__
    return "; caused by ".join(parts)
