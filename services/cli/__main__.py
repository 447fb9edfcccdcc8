"""The `behavry` command. Each subcommand's module is imported when it is used: `behavry --help`
loads none of them.

Exit status: 0 ok, 1 failure, 2 usage, 3 a check found a difference, 7 unreachable, 8 not signed in.
"""

import sys

from cyclopts import App, CycloptsError

from services.cli.output import CommandFailed, Exit, leave

app = App(name="behavry", help="The authorization gateway that every tool call passes through.")
_COMMANDS = "services.cli.commands"

for _name, _target, _help in (
    ("up", "start:up", "Start everything on this machine and stay until Ctrl-C."),
    ("status", "start:status", "Say which processes run."),
    ("down", "start:down", "Stop what `up` started."),
    ("demo", "start:demo", "One governed call of each kind, with its records."),
    ("servers", "servers:app", "The tool servers behind the gateway."),
    ("roles", "roles:app", "Agents' roles and what they permit."),
    ("tools", "tools:app", "The tools of servers and what they do."),
    ("traces", "traces:app", "Decisions and their records."),
    ("audit", "audit:app", "Whether the records are the ones that were written."),
):
    app.command(f"{_COMMANDS}.{_target}", name=_name, help=_help)


def main() -> None:
    """Run the command line and leave with its status."""
    try:
        app(exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(int(Exit.USAGE))
    except CommandFailed as failure:
        leave(failure)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
