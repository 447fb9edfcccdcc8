"""`behavry demo`: what happens to an agent's tool calls, told step by step on the running
installation.

Each step is a real request; its decision and the id of its record are read back from the chain. The
story may be told again and again: it begins by hiding the tools that an earlier telling approved,
and each commit that it waits for is one of its own.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.cli import agent, demo_data, evidence
from services.cli.output import CommandFailed, Exit, emit_text
from services.cli.person import Person, open_session
from services.cli.rest import Control, segment
from services.cli.state import State, recall
from services.cli.verification import verify

#: A held call answers at once when somebody has decided; until then it keeps its agent waiting.
HELD_TIMEOUT_S = 70.0
#: What the admin approves in the story; every other tool stays out of sight.
APPROVED = {
    "time": {"get_current_time": "read", "convert_time": "read"},
    "git": {
        "git_status": "read",
        "git_log": "read",
        "git_diff_unstaged": "read",
        "git_add": "write",
        "git_commit": "write",
        "git_reset": "write",
    },
}
NEVER_APPROVED = "git_create_branch"
Step = dict[str, Any]


def say_step(step: Step) -> None:
    """One line per step, and below it what the agent saw."""
    decision = f"{step['decision'] or '-':<10}"
    emit_text(f"{step['n']:>2}. {decision} {step['title']}")
    emit_text(f"      {step['saw']}")
    if step["record"]:
        emit_text(f"      record {step['record']}  {', '.join(step['reasons'])}".rstrip())


@dataclass(kw_only=True)
class _Telling:
    control: Control
    clients: dict[str, agent.Client]
    agent_id: str
    repository: str
    password_file: Path
    on_step: Callable[[Step], None] | None
    steps: list[Step] = field(default_factory=list)

    def step(
        self,
        title: str,
        saw: str,
        *,
        decision: str | None = None,
        record: str | None = None,
        reasons: Sequence[str] = (),
    ) -> None:
        told = {
            "n": len(self.steps) + 1,
            "title": title,
            "decision": decision,
            "record": record,
            "reasons": list(reasons),
            "saw": saw,
        }
        self.steps.append(told)
        if self.on_step is not None:
            self.on_step(told)


def tell(control: Control, state: State, *, on_step: Callable[[Step], None] | None) -> list[Step]:
    """The whole story. Raises CommandFailed where it does not go as it should."""
    proxy_url = f"http://127.0.0.1:{recall(state).proxy_port}"
    token = _token(control, state, proxy_url)
    telling = _Telling(
        control=control,
        clients={
            slug: agent.Client(mcp_url=f"{proxy_url}/mcp/v1/{slug}", token=token)
            for slug in demo_data.SERVERS
        },
        agent_id=token.agent_id,
        repository=str(state.demo_repo),
        password_file=state.admin_password,
        on_step=on_step,
    )
    _take_back_approvals(telling)
    telling.step(
        "The agent signs in with its client id and secret",
        f"a token for {token.expires_in} s, session {token.session_id}",
    )
    _nothing_is_visible(telling)
    _the_admin_classifies(telling)
    _the_list_shows_them(telling)
    _call(telling, "time", "get_current_time", {"timezone": "UTC"}, expect="allow")
    _call(telling, "git", "git_status", {"repo_path": telling.repository}, expect="allow")
    _call(telling, "git", "git_reset", {"repo_path": telling.repository}, expect="deny")
    _call(
        telling,
        "git",
        NEVER_APPROVED,
        {"repo_path": telling.repository, "branch_name": "x"},
        expect="unknown",
    )
    _something_to_commit(telling)
    _a_person_decides(telling)
    _the_chain_is_whole(telling)
    return telling.steps


def _token(control: Control, state: State, proxy_url: str) -> agent.Token:
    secret_file = state.agents / f"{demo_data.AGENT}.secret"
    found = next(
        (one for one in control.items("/api/v1/agents") if one["name"] == demo_data.AGENT), None
    )
    if found is None or not secret_file.exists():
        raise CommandFailed("the demo data is not there; start `behavry up` with it")
    return agent.fetch_token(
        proxy_url, client_id=found["client_id"], client_secret=secret_file.read_text().strip()
    )


def _take_back_approvals(telling: _Telling) -> None:
    for slug in demo_data.SERVERS:
        for tool in telling.control.items(f"/api/v1/servers/{slug}/tools"):
            if tool["state"] == "approved":
                body = {"action": tool["action"], "state": "hidden"}
                telling.control.put(f"/api/v1/servers/{slug}/tools/{segment(tool['name'])}", body)


def _nothing_is_visible(telling: _Telling) -> None:
    before = evidence.newest_id(telling.control, "type:catalog.served")
    for slug in telling.clients:
        _until_listed(telling, slug, set())
        _until_known(telling, slug)
    telling.step(
        "It lists the tools of both servers: nobody has approved one, so there are none",
        "[]",
        decision="hidden",
        record=_served(telling, other_than=before),
    )


def _served(telling: _Telling, *, other_than: str | None) -> str | None:
    """A list is recorded when it is another one than before; an agent that saw nothing last time
    leaves no new record now.
    """
    deadline = time.monotonic() + 1.0
    while True:
        newest = evidence.newest_id(telling.control, "type:catalog.served")
        if newest != other_than or time.monotonic() > deadline:
            return newest
        time.sleep(0.05)  # noqa: TID251  # the record travels by itself; nobody tells a REST client


def _until_known(telling: _Telling, slug: str) -> None:
    """The agent's first look made the gateway fetch the server's tools; the admin hears of them."""
    deadline = time.monotonic() + evidence.RECORD_TIMEOUT_S
    while not APPROVED[slug].keys() <= _tool_names(telling, slug):
        if time.monotonic() > deadline:
            raise CommandFailed(f"the tools of {slug} did not become known", status=Exit.DIFFERENCE)
        time.sleep(0.1)  # noqa: TID251  # news from the data plane; REST tells it when asked


def _tool_names(telling: _Telling, slug: str) -> set[str]:
    return {tool["name"] for tool in telling.control.items(f"/api/v1/servers/{slug}/tools")}


def _the_admin_classifies(telling: _Telling) -> None:
    for slug, tools in APPROVED.items():
        telling.control.post(
            f"/api/v1/servers/{slug}/tools:classify",
            {"items": [{"tool": tool, "action": action} for tool, action in tools.items()]},
        )
    telling.step(
        "The admin says what the tools do: behavry tools classify SERVER TOOL --action ACTION",
        "; ".join(f"{slug}: {', '.join(tools)}" for slug, tools in APPROVED.items()),
        record=evidence.newest_id(telling.control, "type:admin.tool.classified"),
    )


def _the_list_shows_them(telling: _Telling) -> None:
    before = evidence.newest_id(telling.control, "type:catalog.served")
    for slug, tools in APPROVED.items():
        _until_listed(telling, slug, set(tools))
    telling.step(
        "The agent lists again and sees exactly those",
        str(sum(len(tools) for tools in APPROVED.values())) + " tools",
        decision="visible",
        record=evidence.newest(telling.control, "type:catalog.served", other_than=before)["id"],
    )


def _until_listed(telling: _Telling, slug: str, expected: set[str]) -> None:
    """A change of the tool table is a new bundle: it reaches the agent's list within 2 s."""
    deadline = time.monotonic() + evidence.RECORD_TIMEOUT_S
    while set(listed := telling.clients[slug].list_tools()) != expected:
        if time.monotonic() > deadline:
            raise CommandFailed(
                f"{slug} should list {sorted(expected)} and lists {sorted(listed)}",
                status=Exit.DIFFERENCE,
            )
        time.sleep(0.2)  # noqa: TID251  # asked again like an agent would: nobody tells it


_TITLES = {
    "allow": "It calls {tool}: allowed, and the real server answers",
    "deny": "It calls {tool}: a policy refuses",
    "unknown": "It calls {tool}, which nobody approved: to the agent there is no such tool",
    "approved": "The agent's call goes on, once: it runs, and its record names the approval",
}


def _call(
    telling: _Telling, server: str, tool: str, arguments: dict[str, Any], *, expect: str
) -> None:
    """One call, what the agent saw of it, and the record that it left."""
    before = evidence.newest_id(telling.control, f"tool:{tool}")
    answer = telling.clients[server].call(tool, arguments)
    _tell_call(telling, tool, answer, expect=expect, before=before)


def _tell_call(
    telling: _Telling, tool: str, answer: dict[str, Any], *, expect: str, before: str | None
) -> None:
    saw = evidence.seen(answer, expect)
    record = evidence.newest(telling.control, f"tool:{tool}", other_than=before)
    telling.step(
        _TITLES[expect].format(tool=tool),
        saw,
        decision=record["verdict"],
        record=record["id"],
        reasons=record["reasons"] or [record["reason"]],
    )


def _something_to_commit(telling: _Telling) -> None:
    """A line more in the scratch repository, so that each telling has a commit of its own."""
    readme = Path(telling.repository) / "README.md"
    with readme.open("a") as file:
        file.write("\nOne more edit.\n")
    arguments = {"repo_path": telling.repository, "files": [readme.name]}
    _call(telling, "git", "git_add", arguments, expect="allow")


def _a_person_decides(telling: _Telling) -> None:
    """1. the agent calls and is kept waiting  2. the inbox shows it  3. the admin signs in and
    approves  4. the waiting call runs.
    """
    tool = "git_commit"
    held_before = evidence.newest_id(telling.control, f"tool:{tool} type:call.held")
    before = evidence.newest_id(telling.control, f"tool:{tool} type:call.intent")
    with ThreadPoolExecutor(1) as held:
        calling: Future[dict[str, Any]] = held.submit(  # 1
            telling.clients["git"].call,
            tool,
            {"repo_path": telling.repository, "message": "A change by the agent"},
            timeout_s=HELD_TIMEOUT_S,
        )
        waiting = _waiting(telling, tool, calling)  # 2
        telling.step(
            f"It calls {tool}: a policy wants a person's consent, so the call waits",
            f"nothing yet; behavry escalations list shows {waiting['id']}",
            decision="intercept",
            record=evidence.newest(
                telling.control, f"tool:{tool} type:call.held", other_than=held_before
            )["id"],
            reasons=waiting["codes"],
        )
        _the_admin_approves(telling, waiting["id"])  # 3
        answer = calling.result()  # 4
    _tell_call(telling, f"{tool} type:call.intent", answer, expect="approved", before=before)


def _waiting(telling: _Telling, tool: str, calling: Future[dict[str, Any]]) -> dict[str, Any]:
    """The escalation of the agent's call, as soon as the inbox has it."""
    deadline = time.monotonic() + evidence.RECORD_TIMEOUT_S
    terms = f"state:pending agent:{telling.agent_id} tool:{tool}"
    while True:
        page = telling.control.get("/api/v1/escalations", filter=terms, page_size=1)
        if page["items"]:
            return dict(page["items"][0])
        if calling.done():
            saw = evidence.line(calling.result())
            raise CommandFailed(
                f"{tool} should wait for a person, the agent saw: {saw}", status=Exit.DIFFERENCE
            )
        if time.monotonic() > deadline:
            raise CommandFailed(f"{tool} is not in the inbox", status=Exit.DIFFERENCE)
        time.sleep(0.05)  # noqa: TID251  # the inbox is asked, as a person would


def _the_admin_approves(telling: _Telling, escalation: str) -> None:
    """As a person: an API key may not. The session ends with the step."""
    password = telling.password_file.read_text().strip()
    session = open_session(telling.control.url, username="admin", password=password)
    person = Person(state=None, session=session, password_file=telling.password_file)
    before = evidence.newest_id(telling.control, "type:admin.escalation.approve")
    approved = person.act(
        f"/api/v1/escalations/{segment(escalation)}:approve",
        {"mode": "once", "reason": "shown by the demo"},
    )
    record = evidence.newest(telling.control, "type:admin.escalation.approve", other_than=before)
    person.control.post("/api/v1/auth/logout")
    telling.step(
        "The admin signs in and approves: behavry login, behavry escalations approve ID",
        f"{approved['state']}, usable until {approved['execute_by']}",
        decision=approved["state"],
        record=record["id"],
    )


def _the_chain_is_whole(telling: _Telling) -> None:
    result = verify(telling.control, chain=f"agent:{telling.agent_id}")
    telling.step(
        "The agent's chain of records is verified: behavry audit verify",
        f"{result['verdict']}, assurance {result['assurance']}, {result['rows_done']} records",
        decision=result["verdict"],
    )
    if result["verdict"] != "ok":
        raise CommandFailed("the chain is not whole", status=Exit.DIFFERENCE)
