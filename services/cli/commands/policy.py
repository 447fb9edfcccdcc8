"""`behavry policy`: from a file on disk to a rule that decides, and back.

A policy is `KEY.rego`; its test cases lie beside it in `KEY.tests.json`. Control checks and tests
each version before it saves it; a saved one decides nothing until it is promoted.
"""

import difflib
import json as json_text
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from services.cli.commands.options import (
    ConfirmOption,
    JsonOption,
    PasswordFile,
    StateOption,
    control_of,
    posted,
)
from services.cli.output import CommandFailed, Exit, emit, emit_text, say, table
from services.cli.policy_files import TESTS, PolicyFile, read, template
from services.cli.rest import Control, Refused, is_id, segment

app = App(name="policy", help="Policies: write, test, enforce, roll back.")
_COLUMNS = ("key", "state", "latest_version", "active_version", "created_at")
Result = Literal["deny", "intercept", "allow"]


@app.command(name="list")
def list_policies(*, state: StateOption = None, json: JsonOption = False) -> None:
    """List the policies."""
    items = list(control_of(state).items("/api/v1/policies"))
    if json:
        emit(items)
    else:
        emit_text(table(items, *_COLUMNS))


@app.command
def show(policy: str, /, *, state: StateOption = None, json: JsonOption = False) -> None:
    """The latest version's source, by the policy's key or id."""
    found = _found(control_of(state), policy)[0]
    if json:
        emit(found)
    else:
        emit_text(found["source"].rstrip("\n"))


@app.command
def versions(policy: str, /, *, state: StateOption = None, json: JsonOption = False) -> None:
    """List a policy's versions: who saved which, and when."""
    control = control_of(state)
    items = control.get(f"/api/v1/policies/{_id_of(control, policy)}/versions")["items"]
    if json:
        emit(items)
    else:
        emit_text(table(items, "version", "created_by", "created_at"))


@app.command
def new(
    key: str,
    /,
    *,
    server: Annotated[str, Parameter("--server", help="Whose tool it is about.")],
    tool: Annotated[str, Parameter("--tool", help="The tool.")],
    result: Annotated[
        Result, Parameter("--result", help="deny, or intercept: a person decides.")
    ] = "deny",
    directory: Annotated[Path, Parameter("--directory", help="Where the two files go.")] = Path(),
    state: StateOption = None,
) -> None:
    """Write a policy to begin with and its test cases; nothing is saved yet."""
    tenant = control_of(state).get("/api/v1/me")["tenant"]["id"]
    for name, text in template(key, tenant=tenant, server=server, tool=tool, result=result).items():
        target = directory / name
        try:
            with target.open("x") as file:
                file.write(text)
        except OSError as failure:
            raise CommandFailed(
                f"cannot write {target}: {failure.strerror}", status=Exit.USAGE
            ) from None
        say(f"wrote {target}")
    say(f"next: behavry policy test {directory / key}.rego, then push and promote")


@app.command
def check(file: Path, /, *, state: StateOption = None, json: JsonOption = False) -> None:
    """All that saving would check. Status 3: it would be rejected."""
    _checked(control_of(state), read(file), tests=False, as_json=json)


@app.command(name="test")
def run_tests(file: Path, /, *, state: StateOption = None, json: JsonOption = False) -> None:
    """Run the test cases of `KEY.tests.json` too. Status 3: one came out differently."""
    policy = read(file)
    if not policy.tests:
        raise CommandFailed(f"there are no cases in {file.stem}{TESTS}", status=Exit.USAGE)
    _checked(control_of(state), policy, tests=True, as_json=json)


@app.command
def diff(file: Path, /, *, state: StateOption = None) -> None:
    """Compare a file with the latest saved version. Status 3: they differ."""
    policy = read(file)
    saved = _found(control_of(state), policy.key)[0]
    lines = [
        *_difference(saved["source"], policy.source, f"{policy.key}.rego"),
        *_difference(_cases(saved["tests"]), _cases(policy.tests), f"{policy.key}{TESTS}"),
    ]
    if lines:
        emit_text("\n".join(lines))
        raise CommandFailed(f"{file} is not what is saved", status=Exit.DIFFERENCE)
    say("no difference")


@app.command
def push(file: Path, /, *, state: StateOption = None, json: JsonOption = False) -> None:
    """Save a file as a new version of its policy; the active version goes on deciding."""
    policy, control = read(file), control_of(state)
    body = {"source": policy.source, "tests": policy.tests}
    known = next((one for one in _all(control) if one["key"] == policy.key), None)
    if known is None:
        made = control.post("/api/v1/policies", {"key": policy.key, **body})
    else:
        path = f"/api/v1/policies/{known['id']}"
        saved, etag = control.get_tagged(path)
        if (saved["source"], saved["tests"]) == (policy.source, policy.tests):
            say(f"{policy.key} is saved like this already (version {saved['latest_version']})")
            if json:
                emit(saved)
            return
        made = control.put(path, body, etag=etag)
    if json:
        emit(made)
    else:
        say(f"{policy.key} version {made['latest_version']} is saved; state: {made['state']}")


@app.command
def promote(
    policy: str,
    /,
    *,
    to: Annotated[
        Literal["enforce", "shadow"],
        Parameter("--to", help="enforce: it decides. shadow: it is evaluated and recorded alone."),
    ] = "enforce",
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Let the latest version of a policy count. To enforce it, prove that it is you."""
    _step(policy, to, state=state, password_file=password_file, as_json=json)


@app.command
def retire(
    policy: str,
    /,
    *,
    confirm: ConfirmOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Let a policy decide nothing any more."""
    from services.cli import asking  # noqa: PLC0415  # other verbs ask nothing

    asking.confirmed(policy, given=confirm, what=f"{policy} will decide nothing any more.")
    _step(policy, "retire", state=state, as_json=json)


@app.command
def rollback(
    policy: str,
    version: int,
    /,
    *,
    password_file: PasswordFile = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Take an old version again, under a new number. Prove who you are: it may decide at once."""
    body = {"version": version}
    _step(policy, "rollback", body, state=state, password_file=password_file, as_json=json)


def _step(
    policy: str,
    verb: str,
    body: dict[str, Any] | None = None,
    *,
    state: Path | None,
    password_file: Path | None = None,
    as_json: bool,
) -> None:
    path = f"/api/v1/policies/{_id_of(control_of(state), policy)}:{verb}"
    _tell(posted(path, body, state=state, password_file=password_file), as_json=as_json)


def _tell(policy: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit(policy)
    else:
        active = policy["active_version"]
        say(f"{policy['key']}: {policy['state']}, active version {active or 'none'}")


def _checked(control: Control, policy: PolicyFile, *, tests: bool, as_json: bool) -> None:
    body = {"key": policy.key, "source": policy.source, "tests": policy.tests if tests else []}
    try:
        report = control.post("/api/v1/policies:check", body)
    except Refused as refused:
        if refused.code != "policy_rejected":
            raise
        failed = _failed_cases(refused, policy)
        if as_json:
            emit({**refused.problem, "failed_cases": failed})
        raise CommandFailed(
            "\n".join([str(refused), *_where(refused), *(f"  case: {name}" for name in failed)]),
            status=Exit.DIFFERENCE,
        ) from None
    if as_json:
        emit(report)
    else:
        say(f"{policy.key} is sound; {report['tests_passed']} cases passed")


def _where(refused: Refused) -> list[str]:
    problem = refused.problem
    return [f"  line {problem['line']}, column {problem['column']}"] if "line" in problem else []


def _failed_cases(refused: Refused, policy: PolicyFile) -> list[str]:
    """The names of the cases that control points at (`/tests/2/expect`)."""
    places = [str(one.get("pointer", "")).split("/") for one in refused.problem.get("errors", [])]
    numbers = [int(place[2]) for place in places if len(place) > 2 and place[1] == "tests"]
    return [str(policy.tests[number]["name"]) for number in numbers if number < len(policy.tests)]


def _difference(saved: str, ours: str, name: str) -> list[str]:
    lines = difflib.unified_diff(
        saved.splitlines(), ours.splitlines(), f"saved/{name}", name, lineterm=""
    )
    return list(lines)


def _cases(tests: list[dict[str, Any]]) -> str:
    return json_text.dumps(tests, indent=2, sort_keys=True)


def _all(control: Control) -> list[dict[str, Any]]:
    return list(control.items("/api/v1/policies", page_size=500))


def _id_of(control: Control, policy: str) -> str:
    if is_id(policy):
        return policy
    for one in _all(control):
        if one["key"] == policy:
            return str(one["id"])
    raise CommandFailed(f"not_found: there is no policy {policy!r}")


def _found(control: Control, policy: str) -> tuple[Any, str | None]:
    return control.get_tagged(f"/api/v1/policies/{segment(_id_of(control, policy))}")
