"""The `behavry` command. Each subcommand's module is imported when it is used: `behavry --help`
loads none of them.

Decides the exit status of everything that can go wrong; the statuses are output.py's.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from services.cli.asking import ALLOWED
from services.cli.output import CommandFailed, Exit, leave

_EPILOGUE = (
    "Exit status: 0 ok, 1 failure, 2 usage, 3 a check found a difference, 4 a check is incomplete,"
    " 5 denied, 6 not in the plan, 7 unreachable, 8 not signed in or role too low, 130 interrupted."
)
_HELP = {"--help", "-h"}
_COMMANDS = "services.cli.commands"


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415  # only `--version` asks

    return version("behavry")


app = App(
    name="behavry",
    version=_version,
    help="The authorization gateway that every tool call passes through.",
    help_epilogue=_EPILOGUE,
    help_format="plaintext",
)

for _name, _target, _help in (
    ("up", "start:up", "Start everything on this machine and stay until Ctrl-C."),
    ("status", "start:status", "Say which processes run."),
    ("down", "start:down", "Stop what `up` started."),
    ("demo", "start:demo", "One governed call of each kind, with its records."),
    ("doctor", "doctor:doctor", "Look for what is wrong, and say how to mend it."),
    ("login", "people:login", "Sign in as a person; approvals need one."),
    ("logout", "people:logout", "End that session."),
    ("whoami", "people:whoami", "Say as whom commands ask."),
    ("connect", "connect:connect", "Point an MCP client at a server behind the gateway."),
    ("agents", "agents:app", "The agents and their credentials."),
    ("enrollment-tokens", "enrollment:app", "Tokens with which agents register themselves."),
    ("servers", "servers:app", "The tool servers behind the gateway."),
    ("roles", "roles:app", "Agents' roles and what they permit."),
    ("tools", "tools:app", "The tools of servers and what they do."),
    ("policy", "policy:app", "Policies: write, test, enforce, roll back."),
    ("escalations", "escalations:app", "Calls that wait for a person."),
    ("kill", "kill:app", "Stop an agent, a class, a server or everything at once."),
    ("limits", "limits:app", "Rates of calls, and the clocks of escalations."),
    ("notifications", "notifications:app", "Who outside is told of them."),
    ("traces", "traces:app", "Decisions and their records."),
    ("audit", "audit:app", "Whether the records are the ones that were written."),
    ("users", "users:app", "The people of the tenant and their roles."),
    ("invites", "invites:app", "How people come into the tenant."),
    ("sign-in", "sign_in:app", "How the tenant's people sign in."),
    ("mfa", "mfa:app", "Your second factors."),
    ("password", "password:app", "Your own password."),
    ("sessions", "sessions:app", "Where you are signed in."),
    ("tenants", "tenants:app", "The tenants of this installation."),
    ("admin", "admin:app", "Who runs this installation, in all tenants."),
    ("api-keys", "api_keys:app", "Keys of machines that use the API."),
    ("jobs", "jobs:app", "Work that outlives its request."),
    ("license", "license:app", "The plan and its features."),
    ("completion", "completion:completion", "Print the completion script of a shell."),
):
    app.command(f"{_COMMANDS}.{_target}", name=_name, help=_help)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    no_input: Annotated[
        bool, Parameter("--no-input", negative=(), help="Ask nothing; fail where one would ask.")
    ] = False,
) -> None:
    ALLOWED.set(not no_input)
    app(tokens, exit_on_error=False, print_error=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, the process's own unless told, and leave with its status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given or not _HELP.isdisjoint(given):
        app.help_formatter = "plain"  # whose import every other command would pay for, too
    try:
        app.meta(given, exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(int(Exit.USAGE))
    except CommandFailed as failure:
        leave(failure)
    except KeyboardInterrupt:
        sys.exit(int(Exit.INTERRUPTED))
    except BrokenPipeError:  # the reader went away: `behavry traces | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(int(Exit.FAILURE))


if __name__ == "__main__":
    main()
