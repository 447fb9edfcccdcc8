"""House rules that no linter brings, as scans over the files of the repository.

Each scan is a function from source text to findings, shown to bite on a bad line and to spare its
innocent twin before it is let loose on the tree.
"""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.promises import promise

ROOT = Path(__file__).resolve().parents[2]

# Where a broad handler may stand: the outermost interceptor or middleware, and the supervisor.
BROAD_HANDLERS = {
    "services/common/rpc/interceptors.py",
    "services/common/supervisor.py",
    "services/control/api/edge.py",
    "services/proxy/stdio_host/door.py",
    "services/proxy/transports/entry.py",
}
# Where a test may let time pass: what waits for a condition, what measures time itself, and a tool
# that takes its time because that is what it is called for.
SLEEPERS = ("tests/fakes/", "tests/perf/", "tests/conformance/fixture_tools.py")
# A lock file is made by its tool, addresses and all.
MADE_BY_TOOLS = {"uv.lock"}
# Policies and their cases speak about other machines' paths: that is what they are for.
ABOUT_PATHS = (".json", ".rego", ".yaml")


@cache
def tracked() -> tuple[str, ...]:
    """Every file that is in the repository or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(sorted(f for f in listed.stdout.splitlines() if (ROOT / f).is_file()))


def texts(*, under: tuple[str, ...] = ("",), suffix: str = "") -> Iterator[tuple[str, str]]:
    for file in tracked():
        if file.startswith(under) and file.endswith(suffix) and not file.startswith("protos/gen/"):
            try:
                yield file, (ROOT / file).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # an image has no lines


# --- broad handlers -----------------------------------------------------------------------------


def broad_handlers(source: str) -> list[int]:
    """Lines that swallow everything: by handler, by tuple or by suppress.

    `except BaseException` that ends in a bare `raise` cleans up and swallows nothing.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ExceptHandler(type=ast.Name("BaseException"), body=[*_, ast.Raise(exc=None)]):
                continue
            case ast.ExceptHandler(type=None):
                found.append(node.lineno)
            case ast.ExceptHandler(type=caught) if _is_broad(caught):
                found.append(node.lineno)
            case ast.Call(
                func=ast.Name("suppress") | ast.Attribute(attr="suppress"), args=args
            ) if any(_is_broad(a) for a in args):
                found.append(node.lineno)
    return sorted(found)


def _is_broad(caught: ast.expr | None) -> bool:
    match caught:
        case ast.Name("Exception" | "BaseException"):
            return True
        case ast.Tuple(elts=elements):
            return any(_is_broad(e) for e in elements)
        case _:
            return False


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("try: ...\nexcept Exception: ...", [2]),
        ("try: ...\nexcept BaseException: ...", [2]),
        ("try: ...\nexcept Exception: raise", [2]),
        ("try: ...\nexcept: ...", [2]),
        ("try: ...\nexcept (ValueError, Exception): ...", [2]),
        ("with contextlib.suppress(Exception): ...", [1]),
        ("try: ...\nexcept (ValueError, KeyError): ...", []),
        ("with suppress(FileNotFoundError): ...", []),
        ("try: ...\nexcept BaseException:\n    close()\n    raise", []),
    ],
)
def test_the_scan_tells_broad_handlers_from_narrow_ones(source: str, expected: list[int]) -> None:
    assert expected == broad_handlers(source)


@promise("code:broad-handlers")
def test_broad_handlers_stand_in_two_places_only() -> None:
    found = {f: lines for f, t in texts(suffix=".py") if (lines := broad_handlers(t))}

    assert {} == {f: lines for f, lines in found.items() if f not in BROAD_HANDLERS}


def test_ruff_allows_broad_handlers_where_the_scan_does() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    ignores = settings["tool"]["ruff"]["lint"]["per-file-ignores"]

    assert {f for f, rules in ignores.items() if "BLE001" in rules} == BROAD_HANDLERS


# --- exceptions from the linters ----------------------------------------------------------------

IGNORE = re.compile(r"#\s*(type:\s*ignore|noqa)(\S*)(?P<rest>.*)")
EXPLAINED = re.compile(r"#\s*(type:\s*ignore\[[\w, -]+\]|noqa: [A-Z0-9, ]*[A-Z0-9])\s+#\s*\w.*")


def unexplained(source: str) -> list[int]:
    """Lines that silence a linter without naming the rule and saying why."""
    return [
        n
        for n, line in enumerate(source.splitlines(), start=1)
        if (hit := IGNORE.search(line)) and not EXPLAINED.match(line[hit.start() :])
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = 1  # no" + "qa", [1]),
        ("x = 1  # no" + "qa: S105", [1]),
        ("x = 1  # type" + ": ignore", [1]),
        ("x = 1  # type" + ": ignore[arg-type]", [1]),
        ("x = 1  # no" + "qa: S105  # a header's name", []),
        ("x = 1  # no" + "qa: ARG002, FBT001  # theirs", []),
        ("x = 1  # type" + ": ignore[arg-type]  # checked above", []),
        ("x = 1  # quality: ignored by nobody", []),
    ],
)
def test_the_scan_tells_explained_exceptions_from_bare_ones(line: str, expected: list[int]) -> None:
    assert expected == unexplained(line)


@promise("code:exceptions-explained")
def test_every_exception_from_a_linter_names_its_rule_and_its_reason() -> None:
    found = {f: lines for f, t in texts(suffix=".py") if (lines := unexplained(t))}

    assert {} == found


# --- sleeps -------------------------------------------------------------------------------------


def sleeps(source: str) -> list[int]:
    """Lines that let time pass; giving way to other tasks (`sleep(0)`) is none."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="sleep"), args=[ast.Constant(value=0)]):
                continue
            case ast.Call(func=ast.Attribute(attr="sleep") | ast.Name("sleep")):
                found.append(node.lineno)
    return sorted(found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("time.sleep(1)", [1]),
        ("await asyncio.sleep(0.1)", [1]),
        ("sleep(seconds)", [1]),
        ("await asyncio.sleep(0)", []),
        ("await event.wait()", []),
    ],
)
def test_the_scan_tells_sleeping_from_waiting(source: str, expected: list[int]) -> None:
    assert expected == sleeps(source)


def test_tests_wait_for_events_and_never_sleep() -> None:
    found = {
        f: lines
        for f, t in texts(under=("tests/",), suffix=".py")
        if not f.startswith(SLEEPERS) and (lines := sleeps(t))
    }

    assert {} == found


# --- what is somebody's own ---------------------------------------------------------------------

# Homes and mounts of a machine; the path of this checkout is added when the tree is searched.
HOMES = re.compile(r"(?<![\w.~$}])/(?:home|Users|root|mnt)/\w")


def machine_paths(text: str, *, checkout: str) -> list[int]:
    """Lines that only work on the machine where they were written."""
    return [
        n
        for n, line in enumerate(text.splitlines(), start=1)
        if HOMES.search(line) or re.search(rf"(?<![\w.]){re.escape(checkout)}(?![\w-])", line)
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("open('/ho" + "me/ann/notes')", [1]),
        ("cd /srv/check" + "out && make", [1]),
        ("the API answers at /api/v1/users/home/", []),
        ("${HOME}/.cache and ~/root/x", []),
        ("/srv/checkouts", []),
    ],
)
def test_the_scan_tells_machine_paths_from_others(line: str, expected: list[int]) -> None:
    assert expected == machine_paths(line, checkout="/srv/check" + "out")


def test_no_file_names_a_path_of_one_machine() -> None:
    found = {
        f: lines
        for f, t in texts()
        if not f.endswith(ABOUT_PATHS) and (lines := machine_paths(t, checkout=str(ROOT)))
    }

    assert {} == found


# Written in two halves, or this file would find itself.
REGISTRIES = tuple(
    ".".join(halves)
    for halves in (
        ("py" + "pi", "org"),
        ("python" + "hosted", "org"),
        ("npm" + "js", "org"),
        ("proxy.go" + "lang", "org"),
        ("sum.go" + "lang", "org"),
        ("crates", "io"),
        ("repo.maven" + ".apache", "org"),
        ("deb" + ".debian", "org"),
    )
)


def registry_hosts(text: str) -> list[int]:
    """Lines that bind an install to one registry: which one is the machine's to configure."""
    return [
        n
        for n, line in enumerate(text.splitlines(), start=1)
        if any(host in line for host in REGISTRIES)
    ]


def test_the_scan_tells_a_registry_host_from_a_package() -> None:
    assert [1] == registry_hosts("pip install -i https://" + "py" + "pi.org/simple x")
    assert [] == registry_hosts("a wheel from PyPI, a package of the npm registry")


def test_no_file_names_the_host_of_a_package_registry() -> None:
    found = {
        f: lines for f, t in texts() if f not in MADE_BY_TOOLS and (lines := registry_hosts(t))
    }

    assert {} == found


# --- the walk -----------------------------------------------------------------------------------

IN_TREE = re.compile(
    r"`((?:services|protos|tests|dev|docs|deploy)/[\w./-]+|Makefile|pyproject\.toml|\.ci/run)`"
)


def files_named(markdown: str) -> list[str]:
    return IN_TREE.findall(markdown)


def test_the_walk_is_read_for_file_names() -> None:
    text = "`services/proxy/pipeline.py` and `Makefile`, not `a + b` nor services/x.py"

    assert ["services/proxy/pipeline.py", "Makefile"] == files_named(text)


@promise("docs:walk-is-true")
def test_every_file_that_the_walk_names_exists() -> None:
    named = files_named((ROOT / "docs" / "walk.md").read_text())

    assert named
    assert [] == [f for f in named if not (ROOT / f).exists()]
