"""What a log line may never hold, whoever wrote it."""

import errno
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from services.common.telemetry import logging as telemetry
from services.common.telemetry.logging import configure, describe, get_log, redact

PLANTED = "planted-Zk3vQ9"
SECRETS = [
    f"bhv_sk_{PLANTED}.rest",
    f"bhv_ak_{PLANTED}",
    f"eyJhbGciOiJFUzI1NiJ9.{PLANTED}.c2ln",
    f"Bearer {PLANTED}",
    f"authorization: bearer  {PLANTED}",
    f"postgresql://role:{PLANTED}@host/db",
]
KEYS = sorted(telemetry._FORBIDDEN_KEYS)


def line(**fields: Any) -> str:
    return json.dumps(redact(None, "info", {"event": "x", **fields}), default=repr)


@pytest.fixture
def _tidy() -> Iterator[None]:
    before = list(logging.root.handlers)
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = before


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(one) for one in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("key", KEYS)
def test_a_payloads_key_keeps_its_value_out(key: str) -> None:
    for value in (PLANTED, {"a": PLANTED}, [PLANTED], PLANTED.encode()):
        assert PLANTED not in line(**{key: value})
        assert PLANTED not in line(**{key.title(): value})


@pytest.mark.parametrize("key", KEYS)
def test_a_payloads_key_is_found_at_every_depth(key: str) -> None:
    assert PLANTED not in line(about={"deep": [{key: {"more": PLANTED}}]})


@pytest.mark.parametrize("text", SECRETS)
def test_what_looks_like_a_secret_is_cut_wherever_it_stands(text: str) -> None:
    for value in (f"before {text} after", {"k": [text]}, (text,), {text: "as a key"}):
        assert PLANTED not in line(detail=value)


def test_an_exception_that_was_passed_as_it_is_is_told_without_its_text() -> None:
    assert PLANTED not in line(error=ValueError(PLANTED), errors=[KeyError(PLANTED)])


def test_bytes_are_never_printed() -> None:
    assert PLANTED not in line(detail=PLANTED.encode(), more=[bytearray(PLANTED.encode())])


def test_an_innocent_line_stays_as_it_is() -> None:
    fields = {"event": "call_decided", "decision": "deny", "latency_us": 12, "codes": ["a", "b"],
              "settings": {"BEHAVRY_ENV": "production"}, "at": None, "tokens": 3}  # fmt: skip

    assert fields == redact(None, "info", dict(fields))


def test_an_exception_is_told_by_class_and_place_alone() -> None:
    try:
        try:
            raise KeyError(PLANTED)
        except KeyError as inner:
            raise ValueError(PLANTED) from inner
    except ValueError as failure:
        told = describe(failure)

    assert PLANTED not in told
    assert told.startswith("builtins.ValueError at test_logging.py:")
    assert "caused by builtins.KeyError" in told


@pytest.mark.usefixtures("_tidy")
def test_lines_are_json_and_below_the_level_nothing_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("warning")
    log = get_log("proxy")
    log.info("quiet")
    log.error("loud", token=PLANTED, place={"password": PLANTED})
    [line] = lines(capsys)

    assert ("loud", "error", "proxy") == (line["event"], line["level"], line["service"])
    assert PLANTED not in str(line)


@pytest.mark.usefixtures("_tidy")
def test_what_a_library_logs_is_told_without_its_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("warning")
    theirs = logging.getLogger("some.library")
    configure("warning")  # twice is once
    theirs.info("quiet")
    theirs.error("Task exception: %s", PLANTED, exc_info=ValueError(PLANTED))
    [line] = lines(capsys)

    assert ("library_log", "some.library", "error", "builtins.ValueError at ?") == (
        line["event"], line["logger"], line["severity"], line["error"],
    )  # fmt: skip
    assert PLANTED not in str(line)


class Full(io.StringIO):
    """A file on a disk without room."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "no room")


@pytest.mark.usefixtures("_tidy")
def test_a_line_that_nobody_can_take_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Full()
    monkeypatch.setattr("sys.stdout", full)
    configure()
    get_log("proxy").error("the_disk_is_full")

    assert "the_disk_is_full" in full.getvalue()
