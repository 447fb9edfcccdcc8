"""Features are exact, bounded, and the same for every spelling of a target."""

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy import features, messages, targets
from services.proxy.features import Derived


def derive(arguments: dict[str, Any]) -> dict[str, Any]:
    made = derived(arguments)
    found: dict[str, Any] = msgspec.json.decode(made.encoded)
    return found


def derived(arguments: dict[str, Any]) -> Derived:
    return features.derive(arguments, len(messages.encode(arguments, sort=True)))


def test_sizes_are_exact() -> None:
    found = derive({"a": 1, "b": [1, [2, 3], {}], "c": {"d": "x"}, "e": None})

    assert (3, 7, 3) == (found["depth"], found["leaf_count"], found["item_count"])
    assert len(b'{"a":1,"b":[1,[2,3],{}],"c":{"d":"x"},"e":null}') == found["arg_bytes"]
    kinds = {one["name"]: one["type"] for one in found["keys"]}
    assert {"a": "number", "b": "array", "c": "object", "e": "null"} == kinds


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, "bool"), (1, "number"), (1.5, "number"), (10**30, "number"), ("x", "string"),
     (None, "null"), ([], "array"), ({}, "object")],
    ids=str,
)  # fmt: skip
def test_kinds_of_values(value: Any, kind: str) -> None:
    assert [{"name": "k", "type": kind}] == derive({"k": value})["keys"]


def test_no_arguments_are_no_features() -> None:
    found = derive({})

    assert [] == found["keys"] == found["paths"] == found["urls"]
    assert (0, False) == (found["item_count"], found["overflow"])


#: Where people live on the systems that we know.
HOMES = ("home", "Users")
PASSWD = [
    "/etc/passwd", "/etc//passwd", "/etc/./passwd", "/etc/ssh/../passwd", "/tmp/../etc/passwd",
    "/etc///passwd", "/%65tc/passwd", "/%2565tc/passwd", "\\etc\\passwd", "C:\\etc\\passwd",
    "c:/etc/passwd", "file:///etc/passwd", "/etc/passwd/", "/etc/passwd.", "/etc/passwd ",
    "\\\\server\\etc\\passwd", "\\\\?\\C:\\etc\\passwd", "/\uff45tc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("spelling", PASSWD)
def test_every_spelling_of_a_path_is_that_path(spelling: str) -> None:
    found = derive({"path": spelling})["paths"]

    assert [("/etc/passwd", True)] == [(one["value"], one["config"]) for one in found]


@pytest.mark.parametrize(
    ("text", "config", "protected", "ambiguous"),
    [
        ("~/.ssh/id_rsa", True, False, False),
        ("$HOME/.ssh/id_rsa", True, False, False),
        ("${HOME}/.aws/credentials", True, False, False),
        ("%USERPROFILE%\\.ssh\\id_rsa", True, False, False),
        (f"/{HOMES[0]}/joe/.ssh/id_rsa", True, False, False),
        (f"/{HOMES[1]}/joe/.config/x", True, False, False),
        ("/root/.bashrc", True, False, False),
        ("/etcetera/x", False, False, False),
        ("/srv/MEMORY.md", False, True, False),
        ("/srv/memory.md", False, True, False),
        ("/srv/.env.local", False, True, False),
        ("/srv/environment", False, False, False),
        ("/srv/a\0b", False, False, True),
        ("/../x", False, False, True),
        ("../x", False, False, True),
        ("/srv/$DIR/x", False, False, True),
        ("/srv/%25252565x", False, False, True),
        ("/srv/.../x", False, False, True),
        ("/srv/data", False, False, False),
    ],
)
def test_what_a_path_is(text: str, config: bool, protected: bool, ambiguous: bool) -> None:
    target = targets.path(text)

    assert (config, protected, ambiguous) == (target.config, target.protected, target.ambiguous)


@pytest.mark.parametrize(
    ("text", "depth"), [("/", 0), ("/a", 1), ("/a/b/c", 3), ("/a/*/c", 1), ("~", 0), ("~/a", 1)]
)
def test_a_glob_is_as_deep_as_its_shallowest_match(text: str, depth: int) -> None:
    assert depth == targets.path(text).depth


LOOPBACK = [
    "http://127.0.0.1/x", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/",
    "http://127.1/", "http://0x7f.1:80/", "HTTP://127.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("spelling", LOOPBACK)
def test_every_numeric_form_of_a_host_is_that_host(spelling: str) -> None:
    expected = {"scheme": "http", "host": "127.0.0.1", "port": 80, "private": True}
    assert [expected] == derive({"u": spelling})["urls"]


@pytest.mark.parametrize(
    ("text", "host", "private"),
    [
        ("https://example.com/a", "example.com", False),
        ("https://EXAMPLE.com./a", "example.com", False),
        ("https://b\u00fccher.example/", "xn--bcher-kva.example", False),
        ("http://10.0.0.1/", "10.0.0.1", True),
        ("http://169.254.169.254/", "169.254.169.254", True),
        ("http://[::1]/", "::1", True),
        ("http://intranet/", "intranet", True),
        ("http://db.internal:5432/", "db.internal", True),
        ("https://user:pw@example.com/", "example.com", False),
        ("https://8.8.8.8/", "8.8.8.8", False),
    ],
)
def test_hosts(text: str, host: str, private: bool) -> None:
    (found,) = derive({"u": text})["urls"]

    assert (host, private) == (found["host"], found["private"])


def test_recipients_are_counted_once_across_to_cc_and_bcc() -> None:
    found = derive(
        {"to": "a@x.com, B@x.com", "cc": ["a@X.com", "Joe <c@y.org>"], "bcc": ["d@z.net;e@z.net"]}
    )

    assert 5 == found["recipient_count"]
    assert ["x.com", "y.org", "z.net"] == sorted(found["recipient_domains"])
    assert not found["recipient_groups"]


@pytest.mark.parametrize(
    "address", ["all@x.com", "everyone@x.com", "dev-list@x.com", "@here", "#general"]
)
def test_a_group_is_a_group(address: str) -> None:
    assert derive({"to": address})["recipient_groups"]


def test_commands_and_what_they_touch() -> None:
    found = derive({"command": "cd /tmp && FOO=1 sudo rm -rf '/srv/data' | tee ~/x; /usr/bin/id"})

    assert ["cd", "rm", "tee", "id"] == found["commands"]
    assert {"/tmp", "/srv/data", "~/x"} <= {one["value"] for one in found["paths"]}


def test_tables() -> None:
    sql = 'DELETE FROM "public"."users" u JOIN `orders` o ON 1=1'

    assert ["public.users", "orders"] == derive({"sql": sql})["tables"]
    assert ["t"] == derive({"table": "t"})["tables"]
    assert ["a"] == derive({"anything": "select * from a"})["tables"]


def test_counts_are_the_largest_array_or_the_limit_asked_for() -> None:
    assert 500 == derive({"ids": [1, 2], "limit": 500})["item_count"]
    assert 3 == derive({"ids": [1, 2, 3], "limit": True})["item_count"]


def test_what_does_not_fit_overflows() -> None:
    assert not derive({f"k{i}": 1 for i in range(64)})["overflow"]
    assert derive({f"k{i}": 1 for i in range(65)})["overflow"]
    assert not derive({"path": [f"/p{i}" for i in range(64)]})["overflow"]
    assert derive({"path": [f"/p{i}" for i in range(65)]})["overflow"]
    assert derive({"k" * 65: 1})["overflow"]
    assert derive({"path": "/" + "x" * 2000})["overflow"]


TEXT = 64 * 1024
SLOW: dict[str, dict[str, Any]] = {
    "no address": {"to": ["a" * TEXT] * 62},
    "few addresses": {"to": ["a," * (TEXT // 2)] * 62},
    "odd addresses": {"to": [("a" * 64 + "@ ") * 900] * 62},
    "names before a program": {"cmd": ["a= " * (TEXT // 3)] * 62},
    "no program": {"cmd": [";" * TEXT] * 62},
    "many paths": {"cmd": [f"x{i} " + "/a " * (TEXT // 3) for i in range(60)]},
    "no end of a name": {"sql": ["from [" * (TEXT // 6)] * 62},
    "no end of a string": {"sql": ['from "' * (TEXT // 6)] * 62},
    "long paths": {"path": ["/" + "a/" * 500 + str(i) for i in range(2000)]},
    "paths in ligatures": {"path": ["/" + "\ufdfa" * 300 + str(i) for i in range(2000)]},
    "hosts in accents": {"u": ["http://" + "\u00e9." * 500 + f"{i}.x" for i in range(2000)]},
}


@pytest.mark.parametrize("arguments", SLOW.values(), ids=SLOW)
def test_no_body_keeps_everybody_else_waiting(arguments: dict[str, Any]) -> None:
    """Each is within all limits, and took up to a minute while every letter was looked at."""
    began = time.process_time()
    found = derive(arguments)

    assert time.process_time() - began < 2
    assert found["overflow"]


def test_what_is_not_looked_at_is_said_to_be() -> None:
    beyond = " " * TEXT
    for arguments in (
        {"sql": "select 1" + beyond + "; drop table users"},
        {"to": "a@b.c," + beyond + "everyone@b.c"},
        {"cmd": "ls" + beyond + "; rm -rf /"},
        {"sql": 'select * from "' + "n" * 129 + '"'},
        {"sql": 'select * from a."' + "n" * 129 + '"'},
        {"path": "/" + "a" * 1024},
    ):
        assert derive(arguments)["overflow"], arguments.keys()
    for innocent in (
        {"sql": "select 1" + " " * 1000 + "; drop table users"},
        {"to": [f"person-{i}@company-{i % 9}.example" for i in range(1000)]},
        {"cmd": "ls" + " " * 1000 + "; rm -rf /"},
        {"sql": 'select * from "' + "n" * 128 + '" join [a b].`c`'},
        {"text": "a" * 1_000_000, "path": "/srv/a"},
        {"path": ["/srv/a"] * 1900},
    ):
        assert not derive(innocent)["overflow"], innocent.keys()


def test_an_address_is_found_in_what_stands_around_it() -> None:
    for text in ("Ada <ada@b.c>", "x@ ada@b.c y", "<ada@b.c>;", "mailto:ada@b.c", "@@ ada@b.c"):
        assert ["b.c"] == derive({"to": text})["recipient_domains"], text
    assert 1 == derive({"to": ["Ada <ada@b.c>", "ADA@B.C", "ada@b.c"]})["recipient_count"]
    assert [] == derive({"to": ["a@", "@b.c", "a@ b"]})["recipient_domains"]


def test_the_first_target_is_the_resource() -> None:
    found = derived({"text": "hello", "path": "/srv/a", "to": "a@x.com"})

    assert ("/srv/a", "path") == (found.resource, found.resource_kind)
    assert ("", "none") == (derived({"a": 1}).resource, derived({"a": 1}).resource_kind)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(max_size=60)
    | st.sampled_from([*PASSWD, *LOOPBACK, "a@b.c", "rm -rf /", "select 1 from x"]),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip
NAMES = st.sampled_from(["path", "to", "cmd", "sql", "url", "table", "limit", "x"]) | st.text(
    max_size=70
)


class TargetPath(msgspec.Struct, forbid_unknown_fields=True):
    value: str
    depth: int
    config: bool
    protected: bool
    ambiguous: bool


class TargetUrl(msgspec.Struct, forbid_unknown_fields=True):
    scheme: str
    host: str
    port: int
    private: bool


class Key(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    type: str


class Features(msgspec.Struct, forbid_unknown_fields=True):
    """Core.md 3, every key present."""

    keys: list[Key]
    arg_bytes: int
    depth: int
    leaf_count: int
    item_count: int
    recipient_count: int
    recipient_groups: bool
    recipient_domains: list[str]
    paths: list[TargetPath]
    urls: list[TargetUrl]
    tables: list[str]
    commands: list[str]
    overflow: bool


@given(st.dictionaries(NAMES, TREES, max_size=6))
def test_features_always_have_their_shape_and_their_bounds(arguments: dict[str, Any]) -> None:
    try:
        messages.encode(arguments).decode()
    except UnicodeEncodeError:
        return
    made = derived(arguments)

    found = msgspec.json.decode(made.encoded, type=Features)
    assert all(len(one.name) <= 64 for one in found.keys)
    assert all(len(one.value) <= 1024 for one in found.paths)
    assert all(len(one.host) <= 253 and 0 <= one.port <= 65535 for one in found.urls)
    assert all(len(one) <= 128 for one in (*found.tables, *found.commands))
    assert all(len(one) <= 253 for one in found.recipient_domains)
    lists = (found.keys, found.paths, found.urls, found.tables, found.commands)
    assert all(len(one) <= 64 for one in lists)
    assert len(made.resource) <= 1024
    assert made.encoded == derived(arguments).encoded


@given(st.text(max_size=80))
def test_a_canonical_path_is_its_own_canonical_form(text: str) -> None:
    once = targets.path("/" + text)
    if not once.ambiguous and "%" not in once.value:
        assert once.value == targets.path(once.value).value
