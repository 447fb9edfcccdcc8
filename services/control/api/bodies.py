"""Reads a request's body, after the guard: type, size, JSON, NUL, fields, in this order.

No deferred annotations here (see guards).
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any, Final, Generic, TypeVar

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.requests import ClientDisconnect, Request

from services.control.problems import FieldError, Refusal

MAX_BYTES: Final = 1024 * 1024
POLICY_MAX_BYTES: Final = 4 * 1024 * 1024
#: Whoever sends slower holds one of the places that all share.
BODY_S: Final = 30
_NUL: Final = (b"\x00", b"\\u0000")


class Body(BaseModel):
    """What requests carry. A field that we do not know is refused, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


#: Why somebody does what others will ask about.
Reason = Annotated[str, StringConstraints(min_length=8, max_length=500, strip_whitespace=True)]

T = TypeVar("T", bound=BaseModel)


class JsonBody(Generic[T]):
    def __init__(self, model: type[T], max_bytes: int = MAX_BYTES) -> None:
        self.model = model
        self._max_bytes = max_bytes
        schema = model.model_json_schema(by_alias=True)
        self._field_names = frozenset(_names(schema))
        self._tags = frozenset(_tags(schema))

    async def __call__(self, request: Request) -> T:
        if not getattr(request.state, "admitted", False):
            raise RuntimeError("a body is read after the guard")
        if media_type(request) != "application/json":
            raise Refusal("UNSUPPORTED_MEDIA_TYPE", "Send application/json.")
        raw = await self._read(request)
        refuse_nul(raw)
        try:
            return self.model.model_validate_json(raw)
        except ValidationError as bad:
            raise self.refusal(bad) from None

    async def _read(self, request: Request) -> bytes:
        """What the guard read already, where it had to; else from the connection."""
        raw: bytes | None = getattr(request.state, "raw_body", None)
        if raw is None:
            return await read_capped(request, self._max_bytes)
        if len(raw) > self._max_bytes:
            raise too_large(self._max_bytes)
        return raw

    def refusal(self, bad: ValidationError, *, under: str = "") -> Refusal:
        """`under`: where the model stands in the body."""
        details = bad.errors(include_url=False, include_context=False, include_input=False)
        if any(detail["type"] == "json_invalid" for detail in details):
            return Refusal("MALFORMED_JSON", "The body is not valid JSON.")
        errors = [
            FieldError(under + self._pointer(detail["loc"]), CODES.get(detail["type"], "invalid"))
            for detail in details[:50]
        ]
        return Refusal("VALIDATION_FAILED", "Fields are missing or wrong.", errors=errors)

    def _pointer(self, where: tuple[int | str, ...]) -> str:
        """Up to the first name that the sender made up: what was sent is not echoed."""
        parts: list[str] = []
        for part in where:
            if part in self._tags:
                continue  # which of several forms was read stands nowhere in the body
            if isinstance(part, str) and part not in self._field_names:
                break
            parts.append(str(part))
        return "".join(f"/{part}" for part in parts)


def json_body(model: type[T], max_bytes: int = MAX_BYTES) -> Any:
    """Reads a Model, behind the guard (see any handler)."""
    return Depends(JsonBody(model, max_bytes))


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_capped(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises BODY_TOO_LARGE before more than `max_bytes` are held."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large(max_bytes)
    held = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                held += chunk
                if len(held) > max_bytes:
                    raise too_large(max_bytes)
    except (TimeoutError, ClientDisconnect):
        raise Refusal(
            "INVALID_ARGUMENT", "The body did not come.", headers={"connection": "close"}
        ) from None
    return bytes(held)


def too_large(max_bytes: int) -> Refusal:
    return Refusal("BODY_TOO_LARGE", f"A body has at most {max_bytes} bytes here.")


def refuse_nul(raw: bytes) -> None:
    """PostgreSQL's texts cannot hold a NUL, however it is spelled."""
    if not any(spelling in raw for spelling in _NUL):
        return
    try:
        holds_nul = any("\x00" in text for text in _texts(json.loads(raw)))
    except (ValueError, RecursionError):
        raise Refusal("MALFORMED_JSON", "The body is not valid JSON.") from None
    if holds_nul:
        raise Refusal("VALIDATION_FAILED", "A text holds a NUL.", errors=[FieldError("", "nul")])


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case dict():
            for key, item in value.items():
                yield key
                yield from _texts(item)


def _names(schema: Any) -> Iterator[str]:
    """Every property name that a JSON schema defines."""
    match schema:
        case dict():
            yield from schema.get("properties", {})
            for item in schema.values():
                yield from _names(item)
        case list():
            for item in schema:
                yield from _names(item)


def _tags(schema: Any) -> Iterator[str]:
    """The values that choose between forms."""
    match schema:
        case dict():
            yield from schema.get("discriminator", {}).get("mapping", {})
            for item in schema.values():
                yield from _tags(item)
        case list():
            for item in schema:
                yield from _tags(item)


#: pydantic's error types -> ours, which are stable.
CODES: Final = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "string_type": "not_a_string",
    "int_type": "not_an_integer",
    "int_from_float": "not_an_integer",
    "float_type": "not_a_number",
    "finite_number": "not_a_number",
    "datetime_type": "not_a_time",
    "datetime_parsing": "not_a_time",
    "datetime_from_date_parsing": "not_a_time",
    "timezone_aware": "not_a_time",
    "bool_type": "not_a_boolean",
    "list_type": "not_a_list",
    "dict_type": "not_an_object",
    "model_type": "not_an_object",
    "model_attributes_type": "not_an_object",
    "string_too_short": "too_short",
    "string_too_long": "too_long",
    "too_short": "too_few",
    "too_long": "too_many",
    "string_pattern_mismatch": "pattern",
    "literal_error": "not_allowed",
    "enum": "not_allowed",
    "union_tag_invalid": "not_allowed",
    "union_tag_not_found": "missing",
    "greater_than_equal": "too_small",
    "less_than_equal": "too_large",
    "uuid_type": "not_a_uuid",
    "uuid_parsing": "not_a_uuid",
}
