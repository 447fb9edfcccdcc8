"""`behavry completion`: what makes a shell complete this command; printed, never installed."""

from typing import Annotated, Literal

from cyclopts import Parameter

from services.cli.output import emit_text


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="Whose script.")], /
) -> None:
    """Print a completion script, such as for `source <(behavry completion bash)`."""
    from services.cli.__main__ import app  # noqa: PLC0415  # it imports this file

    emit_text(app.generate_completion(prog_name="behavry", shell=shell))
