"""What is one message and nothing else (mcp.md 3.1)."""

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy import messages
from services.proxy.messages import INVALID_REQUEST, PARSE_ERROR, Kind, Malformed


def call(**changes: Any) -> bytes:
    tree = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}, **changes}
    return json.dumps(tree).encode()


REFUSED = {
    "not JSON": (b"{", PARSE_ERROR),
    "nothing": (b"", PARSE_ERROR),
    "a byte order mark": (b"\xef\xbb\xbf" + call(), PARSE_ERROR),
    "another encoding": (call().decode().encode("utf-16"), PARSE_ERROR),
    "bytes that are no UTF-8": (b'{"a":"\xff"}', PARSE_ERROR),
    "NaN": (b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":NaN}}', PARSE_ERROR),
    "NaN beside a long integer": (b'{"a":NaN,"b":1234567890123456789012}', PARSE_ERROR),
    "infinity by overflow": (b'{"params":{"a":1e999}}', PARSE_ERROR),
    "overflow beside a long integer": (b'{"a":1e999,"b":1234567890123456789012}', PARSE_ERROR),
    "a lone surrogate": (b'{"params":{"a":"\\ud800"}}', PARSE_ERROR),
    "a lone surrogate beside a long integer": (
        b'{"a":"\\ud800","b":1234567890123456789012}', PARSE_ERROR,
    ),
    "a batch": (b"[" + call() + b"]", INVALID_REQUEST),
    "a bare string": (b'"tools/call"', INVALID_REQUEST),
    "a key twice": (b'{"jsonrpc":"2.0","id":1,"method":"m","method":"n"}', INVALID_REQUEST),
    "a key twice, escaped": (
        b'{"jsonrpc":"2.0","id":1,"method":"m","\\u006dethod":"n"}', INVALID_REQUEST,
    ),
    "a key twice, deep": (
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":[{"b":1,"b" : 2}]}}', INVALID_REQUEST,
    ),
    "a key twice beside a long integer": (
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":1,"a":1234567890123456789012}}',
        INVALID_REQUEST,
    ),
    "too deep": (
        call(params={"a": json.loads("[" * 63 + "]" * 63)}), INVALID_REQUEST,
    ),
    "absurdly deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", INVALID_REQUEST),
    "absurdly deep beside a long integer": (
        b'{"b":1234567890123456789012,"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        INVALID_REQUEST,
    ),
    "too many leaves": (call(params={"a": [0] * 100_001}), INVALID_REQUEST),
    "too many empty lists": (call(params={"a": [[]] * 100_001}), INVALID_REQUEST),
    "another protocol": (call(jsonrpc="1.0"), INVALID_REQUEST),
    "no method": (b'{"jsonrpc":"2.0","id":1}', INVALID_REQUEST),
    "a method that is a number": (call(method=1), INVALID_REQUEST),
    "an empty method": (call(method=""), INVALID_REQUEST),
    "a method of 129": (call(method="m" * 129), INVALID_REQUEST),
    "params as a list": (call(params=[]), INVALID_REQUEST),
    "params as null": (call(params=None), INVALID_REQUEST),
    "id null": (call(id=None), INVALID_REQUEST),
    "id a fraction": (call(id=1.5), INVALID_REQUEST),
    "id a float": (call(id=1.0), INVALID_REQUEST),
    "id true": (call(id=True), INVALID_REQUEST),
    "id beyond 2^53-1": (call(id=2**53), INVALID_REQUEST),
    "id of 257": (call(id="i" * 257), INVALID_REQUEST),
}  # fmt: skip


@pytest.mark.parametrize(("body", "code"), REFUSED.values(), ids=REFUSED)
def test_what_two_readers_could_read_differently_is_refused(body: bytes, code: int) -> None:
    with pytest.raises(Malformed) as refused:
        messages.parse(body)

    assert code == refused.value.code


TAKEN = {
    "plain": call(),
    "spaced": json.dumps(json.loads(call()), indent=2).encode(),
    "a string that looks like a key": call(params={"a": '":', "b": ':"x":'}),
    "64 levels": call(params={"a": json.loads("[" * 62 + "]" * 62)}),
    "100,000 leaves": call(params={"a": [0] * 99_990}),
    "the longest method": call(method="m" * 128),
    "the longest id": call(id="i" * 256),
    "the biggest id": call(id=2**53 - 1),
    "the smallest id": call(id=-(2**53) + 1),
    "equal keys in different objects": call(params={"a": {"a": {"a": 1}}, "b": {"a": 2}}),
}


@pytest.mark.parametrize("body", TAKEN.values(), ids=TAKEN)
def test_their_innocent_twins_pass(body: bytes) -> None:
    assert Kind.REQUEST is messages.parse(body).kind


def test_a_refusal_repeats_a_valid_id_and_no_other() -> None:
    with pytest.raises(Malformed) as good:
        messages.parse(call(id="q1", params=[]))
    with pytest.raises(Malformed) as bad:
        messages.parse(call(id=1.5))

    assert ("q1", None) == (good.value.id, bad.value.id)


def test_without_an_id_it_is_a_notification_and_without_a_method_a_response() -> None:
    notification = messages.parse(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
    response = messages.parse(b'{"jsonrpc":"2.0","id":4,"result":{}}')

    assert (Kind.NOTIFICATION, Kind.RESPONSE) == (notification.kind, response.kind)


def test_members_of_other_spelling_are_dropped() -> None:
    message = messages.parse(b'{"jsonrpc":"2.0","id":1,"method":"a","Method":"b","PARAMS":{"x":1}}')

    assert ("a", {}) == (message.method, message.params)


@given(st.integers(-(10**40), 10**40))
def test_integers_of_any_size_survive_exactly(number: int) -> None:
    body = call(params={"n": number})

    tree = messages.parse(body).params

    assert number == tree["n"]
    assert number == json.loads(messages.encode(tree, sort=True))["n"]


KEYS = st.text(string.ascii_letters + '":\\ \u00e9', max_size=4)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | KEYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, TREES, max_size=4), st.sampled_from([None, 2]))
def test_a_tree_comes_through_as_it_is(params: dict[str, Any], indent: int | None) -> None:
    tree = {"jsonrpc": "2.0", "id": 1, "method": "m", "params": params}
    body = json.dumps(tree, indent=indent).encode()

    parsed = messages.parse(body).params

    assert params == parsed
    assert params == json.loads(messages.encode(parsed, sort=True))


@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=3), st.data())
def test_any_duplicate_anywhere_is_found(params: dict[str, Any], data: Any) -> None:
    key = data.draw(st.sampled_from(sorted(params)))
    doubled = json.dumps(params)[:-1] + f",{json.dumps(key)}:0}}"
    body = b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"x":[%s]}}' % doubled.encode()

    with pytest.raises(Malformed):
        messages.parse(body)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_stumble(body: bytes) -> None:
    try:
        messages.parse(body)
    except Malformed:
        return


UPSTREAM = {
    "a long integer": b'{"a":123456789012345678901}',
    "a long integer, and a text like one": b'{"a":-9223372036854775809,"b":"12345678901234567890"}',
    "the last integer of 64 bits": b'{"a":18446744073709551615,"b":18446744073709551616}',
    "many lists": b'{"a":[' + b"[]," * 500 + b"0]}",
    "200 levels": b"[" * 200 + b"]" * 200,
}


@pytest.mark.parametrize("body", UPSTREAM.values(), ids=UPSTREAM)
def test_what_a_server_says_can_be_written_again(body: bytes) -> None:
    tree = messages.decode(body)

    assert json.loads(body) == tree
    assert tree == json.loads(messages.encode(tree))


def test_what_could_not_be_written_again_is_not_read() -> None:
    for levels in (201, 300, 1_500, 100_000):
        with pytest.raises(Malformed):
            messages.decode(b"[" * levels + b"]" * levels)


def test_what_a_server_says_at_once_is_read_without_a_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk over the millions of values that fit into one answer takes seconds."""

    def walked(*_: Any, **__: Any) -> None:
        raise AssertionError("walked")

    monkeypatch.setattr(messages, "measure", walked)
    monkeypatch.setattr(messages, "_has_huge", walked)
    tree = messages.decode(b'{"a":[' + b",".join([b'{"b":1.5}'] * 10_000) + b"]}")

    assert 10_000 == len(tree["a"])


def test_of_a_batch_with_too_many_messages_none_is_read() -> None:
    wide: list[dict[str, Any]] = [{} for _ in range(messages.MAX_BATCH + 1)]

    assert [None] == list(messages.split(wide))
    assert wide[1:] == messages.split(wide[1:])
    assert [{"a": 1}] == list(messages.split({"a": 1}))


def test_of_a_key_that_a_server_says_twice_the_last_counts() -> None:
    assert {"a": 2} == messages.decode(b'{"a":1,"a":2}')


def test_a_value_is_written_alike_wherever_it_stands() -> None:
    alone = messages.encode([1e-7, 1e22, "\u00e9"], sort=True)
    beside = messages.encode({"z": 2**70, "a": [1e-7, 1e22, "\u00e9"]}, sort=True)

    assert b'{"a":%s,"z":%d}' % (alone, 2**70) == beside
