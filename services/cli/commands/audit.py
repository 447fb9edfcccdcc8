"""`behavry audit`: whether the records are the ones that were written."""

from typing import Annotated

from cyclopts import App, Parameter

from services.cli.commands.options import JsonOption, StateOption, control_of
from services.cli.output import CommandFailed, Exit, emit, emit_text, table
from services.cli.verification import verify as run_verification

app = App(name="audit", help="The chain of records.")


@app.command
def verify(
    *,
    chain: Annotated[
        str | None,
        Parameter("--chain", help="One chain (agent:<uuid>, tenant, admin) instead of all."),
    ] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Verify the chains of this tenant. Status 0: whole; 3: something was
    changed or is missing; 4: not all of it could be read.
    """
    result = run_verification(control_of(state), chain=chain)
    if json:
        emit(result)
    else:
        emit_text(
            f"{result['verdict']} (assurance {result['assurance']},"
            f" {result['rows_done']} records in {result['chains']} chains)"
        )
        for finding in result.get("findings", []):
            emit_text(f"  {finding['chain']} at {finding['position']}: {finding['code']}")
    match result["verdict"]:
        case "ok":
            return
        case "incomplete":
            raise CommandFailed(
                f"not everything could be read: {result.get('why') or 'unknown'}",
                status=Exit.INCOMPLETE,
            )
        case _:
            raise CommandFailed("the chain is not as it was written", status=Exit.DIFFERENCE)


@app.command
def heads(*, state: StateOption = None, json: JsonOption = False) -> None:
    """The end of each chain, to compare with what was seen before."""
    items = control_of(state).get("/api/v1/audit/heads")["items"]
    if json:
        emit(items)
    else:
        emit_text(table(items, "chain", "incarnation", "position", "hash"))
