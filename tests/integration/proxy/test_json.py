"""What is one message and nothing else (mcp.md 3.1), through a running proxy: each refusal beside
its innocent twin. A refusal leaves nothing upstream and a record; a twin arrives as it was meant.
"""

import json
from typing import Any

from services.common.ids import TenantId
from services.common.outbox.digests import Digester
from tests.fakes import mcp_wire as wire
from tests.fakes.gateway import MODERN_META, Gateway
from tests.fakes.tool_server import ToolServer

CALL = {
    "mcp-protocol-version": wire.MODERN, "mcp-method": "tools/call", "mcp-name": "read_note",
}  # fmt: skip
META = json.dumps(MODERN_META)
PARSE_ERROR, INVALID_REQUEST = -32700, -32600


def body(
    arguments: str = "{}", *, id: str = "1", head: str = "", tail: str = "", params: str = ""
) -> bytes:
    """A call as text, so that what no serialiser writes can stand in it."""
    inner = f'"name":"read_note","arguments":{arguments},"_meta":{META}{params}'
    text = f'{head}{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{{inner}}}{tail}}}'
    return text.encode("utf-8", "surrogatepass")


def nested(levels: int) -> str:
    """As a member of arguments, which are at the third level."""
    return f'{{"a":{"[" * levels}{"]" * levels}}}'


#: What is refused -> (the body, its code, its innocent twin).
PAIRS: dict[str, tuple[bytes, int, bytes]] = {
    "nothing": (b"", PARSE_ERROR, body()),
    "half": (body()[:-1], PARSE_ERROR, body()),
    "more than one": (body() + body(), PARSE_ERROR, body() + b" \r\n\t"),
    "a comma too many": (body('{"a":1,}'), PARSE_ERROR, body('{"a":1}')),
    "single quotes": (body("{'a':1}"), PARSE_ERROR, body('{"a":"\'"}')),
    "a comment": (body('{"a":1/**/}'), PARSE_ERROR, body('{"a":"/**/"}')),
    "a mark of byte order": (b"\xef\xbb\xbf" + body(), PARSE_ERROR, body('{"a":"\ufeff"}')),
    "UTF-16": (body().decode().encode("utf-16"), PARSE_ERROR, body('{"a":"\u4e2d"}')),
    "UTF-16 without a mark": (body().decode().encode("utf-16-le"), PARSE_ERROR, body()),
    "bytes of no character": (
        body('{"a":"?"}').replace(b"?", b"\xff"), PARSE_ERROR, body('{"a":"\xff"}'),
    ),
    "a character spelled too long": (
        body('{"a":"?"}').replace(b"?", b"\xc0\xaf"), PARSE_ERROR, body('{"a":"/"}'),
    ),
    "a surrogate in bytes": (body('{"a":"\ud83d"}'), PARSE_ERROR, body('{"a":"\U0001f600"}')),
    "a lone surrogate": (
        body('{"a":"\\ud83d"}'), PARSE_ERROR, body('{"a":"\\ud83d\\ude00"}'),
    ),
    "surrogates in the wrong order": (
        body('{"a":"\\ude00\\ud83d"}'), PARSE_ERROR, body('{"a":"\\\\ud83d"}'),
    ),
    "a lone surrogate in a key": (body('{"\\ud83d":1}'), PARSE_ERROR, body('{"\\u00e9":1}')),
    "a lone surrogate beside a long number": (
        body('{"a":"\\ud83d","b":123456789012345678901234567890}'), PARSE_ERROR,
        body('{"a":"\\ud83d\\ude00","b":123456789012345678901234567890}'),
    ),
    "a control character": (body('{"a":"\x01"}'), PARSE_ERROR, body('{"a":"\\u0001"}')),
    "NaN": (body('{"a":NaN}'), PARSE_ERROR, body('{"a":"NaN"}')),
    "infinity": (body('{"a":-Infinity}'), PARSE_ERROR, body('{"a":null}')),
    "a number that overflows": (body('{"a":1e400}'), PARSE_ERROR, body('{"a":1e308}')),
    "a small number that overflows": (body('{"a":-1e400}'), PARSE_ERROR, body('{"a":1e-400}')),
    "an integer that overflows": (
        body(f'{{"a":{"9" * 400}}}'), PARSE_ERROR, body(f'{{"a":{"9" * 300}}}'),
    ),
    "a number that begins with 0": (body('{"a":012}'), PARSE_ERROR, body('{"a":0.12}')),
    "a number with a plus": (body('{"a":+1}'), PARSE_ERROR, body('{"a":1e+1}')),
    "a hexadecimal number": (body('{"a":0x1F}'), PARSE_ERROR, body('{"a":31}')),
    "a batch": (b"[" + body() + b"]", INVALID_REQUEST, body()),
    "a string": (b'"tools/call"', INVALID_REQUEST, body()),
    "null": (b"null", INVALID_REQUEST, body()),
    "a key twice": (body('{"a":1,"a":1}'), INVALID_REQUEST, body('{"a":1,"A":1}')),
    "a key twice in two spellings": (
        body('{"a":1,"\\u0061":2}'), INVALID_REQUEST, body('{"a":1,"\\u0062":2}'),
    ),
    "a key twice, deep down": (
        body('{"x":[{"y":{"a":1,"b":0,"a":2}}]}'), INVALID_REQUEST,
        body('{"x":[{"y":{"a":1}},{"y":{"a":2}}]}'),
    ),
    "a key twice with space around": (
        body('{"a" \n:1,"a"\t:2}'), INVALID_REQUEST, body('{"a" \n:"\\"a\\":"}'),
    ),
    "a key twice beside texts that look like keys": (
        body('{"s":"\\":\\":","a":1,"a":2}'), INVALID_REQUEST, body('{"s":"\\":\\":","a":1}'),
    ),
    "an empty key twice": (body('{"":1,"":2}'), INVALID_REQUEST, body('{"":1}')),
    "a second name": (
        body(params=',"name":"drop_notes"'), INVALID_REQUEST, body(params=',"Name":"drop_notes"'),
    ),
    "second arguments": (
        body(params=',"arguments":{"a":1}'), INVALID_REQUEST, body(params=',"argument":{"a":1}'),
    ),
    "a second method": (
        body(tail=',"method":"tools/list"'), INVALID_REQUEST, body(tail=',"Method":"tools/list"'),
    ),
    "a second id": (body(tail=',"id":2'), INVALID_REQUEST, body(tail=',"ID":2')),
    "65 levels": (body(nested(62)), INVALID_REQUEST, body(nested(61))),
    "100,000 levels": (body(nested(100_000)), INVALID_REQUEST, body(nested(1))),
    "65 levels of objects": (
        body('{"a":' * 63 + "1" + "}" * 63), INVALID_REQUEST,
        body('{"a":' * 62 + "1" + "}" * 62),
    ),
    "too many values": (
        body(f'{{"a":[{"0," * 100_000}0]}}'), INVALID_REQUEST,
        body(f'{{"a":[{"0," * 99_980}0]}}'),
    ),
    "too many empty lists": (
        body(f'{{"a":[{"[]," * 100_000}0]}}'), INVALID_REQUEST,
        body(f'{{"a":[{"[]," * 99_980}0]}}'),
    ),
    "another protocol": (
        body().replace(b'"2.0"', b'"1.0"'), INVALID_REQUEST,
        body().replace(b'"2.0"', b'"2\\u002e0"'),
    ),
    "a protocol that is a number": (body().replace(b'"2.0"', b"2.0"), INVALID_REQUEST, body()),
    "no protocol": (body().replace(b'"jsonrpc":"2.0",', b""), INVALID_REQUEST, body()),
    "no method": (body().replace(b'"method"', b'"Method"'), INVALID_REQUEST, body()),
    "a method that is none": (body().replace(b'"tools/call"', b"null"), INVALID_REQUEST, body()),
    "an empty method": (body().replace(b"tools/call", b""), INVALID_REQUEST, body()),
    "a method of 129": (body().replace(b"tools/call", b"m" * 129), INVALID_REQUEST, body()),
    "params as a list": (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[]}', INVALID_REQUEST, body(),
    ),
    "params as null": (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":null}', INVALID_REQUEST, body(),
    ),
    "id null": (body(id="null"), INVALID_REQUEST, body(id='"null"')),
    "id true": (body(id="true"), INVALID_REQUEST, body(id="0")),
    "id a fraction": (body(id="1.5"), INVALID_REQUEST, body(id='"1.5"')),
    "id with a point": (body(id="1.0"), INVALID_REQUEST, body(id="-1")),
    "id with an exponent": (body(id="1e3"), INVALID_REQUEST, body(id="1000")),
    "id beyond 2^53-1": (
        body(id="9007199254740992"), INVALID_REQUEST, body(id="9007199254740991"),
    ),
    "id below -2^53+1": (
        body(id="-9007199254740992"), INVALID_REQUEST, body(id="-9007199254740991"),
    ),
    "id of 30 digits": (body(id="1" * 30), INVALID_REQUEST, body(id=f'"{"1" * 30}"')),
    "id an object": (body(id="{}"), INVALID_REQUEST, body(id='""')),
    "id of 257": (
        body(id=f'"{"é" * 257}"'), INVALID_REQUEST, body(id=f'"{"é" * 256}"'),
    ),
}  # fmt: skip


def meant(sent: bytes) -> tuple[Any, Any]:
    """(id, arguments) by a second reader."""
    tree = json.loads(sent)
    return tree["id"], tree["params"]["arguments"]


async def test_each_refusal_goes_nowhere_and_is_in_the_chain(
    proxy: Gateway, tools: ToolServer
) -> None:
    before = tools.bodies_seen()

    found = {}
    for what, (bad, _, _) in PAIRS.items():
        status, answer = await proxy.post(bad, headers=CALL)
        found[what] = (status, answer["error"]["code"])

    assert {what: (400, code) for what, (_, code, _) in PAIRS.items()} == found
    assert before == tools.bodies_seen()
    recorded = [one["error"] for one in proxy.records("call.rejected")]
    assert [str(code) for _, code, _ in PAIRS.values()] == recorded
    assert {"malformed"} == {one["reason"] for one in proxy.records("call.rejected")}


async def test_each_innocent_twin_arrives_as_it_was_meant(
    proxy: Gateway, tools: ToolServer
) -> None:
    for what, (_, _, good) in PAIRS.items():
        status, answer = await proxy.post(good, headers=CALL)

        given, arguments = meant(good)
        assert (200, given) == (status, answer["id"]), what
        assert answer["result"]["isError"] is False, what
        arrived = json.loads(tools.bodies_seen()[-1])
        assert arguments == arrived["params"]["arguments"], what

    runs = len(PAIRS)
    assert (runs, runs) == (len(proxy.records("call.intent")), len(tools.ran()))


NUMBERS = (
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
    "18446744073709551615", "18446744073709551616", "123456789012345678901234567890",
    "-" + "7" * 300, "9007199254740993", "0.1", "-0.0", "1e22", "5e-324",
    "179769313486231570000", "1.7976931348623157e308",
)  # fmt: skip


async def test_numbers_of_any_length_arrive_exactly(proxy: Gateway, tools: ToolServer) -> None:
    await proxy.post(body(f'{{"n":[{",".join(NUMBERS)}]}}'), headers=CALL)

    arrived = json.loads(tools.bodies_seen()[-1])["params"]["arguments"]["n"]
    assert [json.loads(number) for number in NUMBERS] == arrived
    assert [repr(json.loads(number)) for number in NUMBERS] == [repr(one) for one in arrived]


async def test_what_is_decided_is_what_arrives(proxy: Gateway, tools: ToolServer) -> None:
    """Whatever the spelling: the same value, the same digest, the same bytes."""
    spellings = (
        '{"b":[1,2.50],"a":"\\u00e9\\/","long":123456789012345678901}',
        ' { "long" : 123456789012345678901 , "a" : "\u00e9/" , "b" : [ 1 , 2.5 ] } ',
    )
    for spelling in spellings:
        await proxy.post(body(spelling), headers=CALL)

    first, second = proxy.records("call.intent")
    assert first["arguments"] == second["arguments"]
    canonical = b'{"a":"\xc3\xa9/","b":[1,2.5],"long":123456789012345678901}'
    arrived = tools.bodies_seen()[-2:]
    assert [True, True] == [canonical in one for one in arrived]
    digester = Digester.load(proxy.settings.digest_keys)
    made = digester.make(TenantId(proxy.tenant), "arguments", canonical)
    assert made == first["arguments"]["digest"]


async def test_only_the_members_of_a_message_are_read(proxy: Gateway, tools: ToolServer) -> None:
    extra = ',"METHOD":"tools/list","Params":{"name":"drop_notes"},"trace":"t","Result":{},"x":1'
    ours = ',"com.behavry/decision":{"verdict":"allow"},"vendor/flag":true'
    sent = body('{"call":"c1"}', tail=extra).replace(b'"_meta":{', b'"_meta":{"vendor/a":1,')
    sent = sent.replace(META.encode()[1:-1], META.encode()[1:-1] + ours.encode())

    _, answer = await proxy.post(sent, headers=CALL)

    assert answer["result"]["isError"] is False
    arrived = json.loads(tools.bodies_seen()[-1])
    assert {"jsonrpc", "id", "method", "params"} == arrived.keys()
    assert ("tools/call", "read_note") == (arrived["method"], arrived["params"]["name"])
    assert not [key for key in arrived["params"]["_meta"] if key.startswith("com.behavry/")]
    assert ["c1"] == tools.ran()
