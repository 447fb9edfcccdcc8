"""`stdio.toml`: what an entry may say (mcp.md 10.1)."""

from typing import Any

import pytest

from services.proxy.backends.commands import MAX_UID, Command, CommandsInvalid, parse


def read(text: str) -> Command:
    return parse(f"[a]\n{text}\n".encode(), "stdio.toml")["a"]


def test_an_entry_says_what_runs_where_and_as_whom() -> None:
    read_ = read(
        'command = "/bin/a"\nargs = ["-v"]\ncwd = "/srv"\nsandbox = ["box"]\nuid = 1001\n'
        'env = { TOKEN = "secret://token" }'
    )

    assert (
        Command(
            command="/bin/a", args=("-v",), cwd="/srv", sandbox=("box",), uid=1001,
            env={"TOKEN": "secret://token"},
        )
        == read_
    )  # fmt: skip
    assert Command(command="a") == read('command = "a"')
    assert MAX_UID == read(f'command = "a"\nuid = {MAX_UID}').uid


ODD: list[Any] = [
    "", 'command = ""', 'command = ["a"]', 'command = "a"\nargs = "b"', 'command = "a"\nargs = [1]',
    'command = "a"\ncwd = 1', 'command = "a"\nsandbox = "b"', 'command = "a"\nenv = { A = 1 }',
    'command = "a"\nenv = { BEHAVRY_STATE_DIR = "x" }', 'command = "a"\nshell = true',
    'command = "a"\nuid = 0', 'command = "a"\nuid = -1', 'command = "a"\nuid = true',
    'command = "a"\nuid = "nobody"', 'command = "a"\nuid = 1.0', 'command = "a"\nuid = 4294967295',
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_entry_is_refused_by_name(text: str) -> None:
    with pytest.raises(CommandsInvalid, match=r"stdio.toml: \[a\]"):
        read(text)


def test_what_is_no_file_of_entries_is_refused() -> None:
    for content in (b"\xff", b"a = ", b"a = 1"):
        with pytest.raises(CommandsInvalid):
            parse(content, "stdio.toml")
