"""The clients that can be connected: where each keeps its configuration and what an entry looks
like.

Decides shapes alone (one endpoint, one name of a variable in; entries and snippets out). Reading
and writing files is files.py's work. No entry holds a secret where its client reads it from a
variable or asks for it; one client does neither.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

#: The variable that holds an agent's key, unless another is named.
KEY_VARIABLE = "BEHAVRY_AGENT_KEY"
#: The question that VS Code asks once and keeps the answer of, encrypted.
VSCODE_INPUT = "behavry-agent-key"
#: What speaks for a client that starts programs and dials no addresses.
PROGRAM = "behavry-mcp-stdio"
#: Stands where a key belongs in what is shown.
NO_KEY = "..."
Format = Literal["json", "toml"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One server behind the gateway, as an agent with a static key reaches it. `key_variable` is
    a variable's name; `key` is the key itself, there only while it is written into the file of a
    client that `holds_key`.
    """

    server: str
    gateway: str
    key_variable: str = KEY_VARIABLE
    program: str = PROGRAM
    key: str = field(default=NO_KEY, repr=False)

    @property
    def url(self) -> str:
        return f"{self.gateway}/mcp/v1/{self.server}/key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where configurations lie on this machine."""

    home: Path
    project: Path
    environment: Mapping[str, str]
    platform: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileClient:
    """A client that reads a file. `table`: the member that holds its servers by name."""

    name: str
    format: Format
    table: str
    file: Callable[[Places], Path]
    entry: Callable[[Endpoint], dict[str, Any]]
    #: What to do beside the file: lines for people.
    hint: Callable[[Endpoint], list[str]]
    #: It expands no variables and asks nothing: the key itself stands in its file.
    holds_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeClient:
    """A library: a few lines of a program."""

    name: str
    snippet: Callable[[Endpoint], str]


def _url_entry(endpoint: Endpoint, secret: str, **more: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {secret}"}
    return {**more, "url": endpoint.url, "headers": headers}


def _claude_code_hint(endpoint: Endpoint) -> list[str]:
    command = f"  claude mcp add --scope project --transport http {endpoint.server} {endpoint.url}"
    return [
        "The same by its own command, in the project's directory (single quotes keep the key out):",
        f"{command} -H 'Authorization: Bearer ${{{endpoint.key_variable}}}'",
    ]


def _variable_hint(endpoint: Endpoint) -> list[str]:
    return [f"The client must be started where ${endpoint.key_variable} is set."]


def _vscode_hint(_: Endpoint) -> list[str]:
    return ["VS Code asks for the key once, when the server starts, and keeps it encrypted."]


def _desktop_entry(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "command": endpoint.program,
        "args": ["--server-url", endpoint.url],
        "env": {KEY_VARIABLE: endpoint.key},
    }


def _desktop_hint(_: Endpoint) -> list[str]:
    return [
        "Claude Desktop expands no variables: the key itself stands in its file, which only its",
        "owner may read. It reads the file when it starts.",
    ]


def _desktop_file(places: Places) -> Path:
    base = (
        places.home / "Library" / "Application Support"
        if places.platform == "darwin"
        else Path(places.environment.get("XDG_CONFIG_HOME") or places.home / ".config")
    )
    return base / "Claude" / "claude_desktop_config.json"


def _codex_file(places: Places) -> Path:
    return Path(places.environment.get("CODEX_HOME") or places.home / ".codex") / "config.toml"


def _openai_agents(endpoint: Endpoint) -> str:
    return "\n".join(
        (
            "import os",
            "",
            "from agents.mcp import MCPServerStreamableHttp",
            "",
            *_python_headers(endpoint),
            "server = MCPServerStreamableHttp(",
            f"    name={json.dumps(endpoint.server)},",
            f'    params={{"url": {json.dumps(endpoint.url)}, "headers": headers}},',
            "    client_session_timeout_seconds=60,  # a call may wait for a person",
            ")",
        )
    )


def _langchain(endpoint: Endpoint) -> str:
    return "\n".join(
        (
            "import os",
            "",
            "from langchain_mcp_adapters.client import MultiServerMCPClient",
            "",
            *_python_headers(endpoint),
            "client = MultiServerMCPClient(",
            "    {",
            f"        {json.dumps(endpoint.server)}: {{",
            '            "transport": "streamable_http",',
            f'            "url": {json.dumps(endpoint.url)},',
            '            "headers": headers,',
            "        }",
            "    }",
            ")",
        )
    )


def _python_headers(endpoint: Endpoint) -> list[str]:
    name = endpoint.key_variable  # letters, digits, underscores: it needs no escapes
    return [f'headers = {{"Authorization": f"Bearer {{os.environ[\'{name}\']}}"}}']


FILE_CLIENTS: dict[str, FileClient] = {
    one.name: one
    for one in (
        FileClient(
            name="claude-code",
            format="json",
            table="mcpServers",
            file=lambda places: places.project / ".mcp.json",
            entry=lambda endpoint: _url_entry(
                endpoint, f"${{{endpoint.key_variable}}}", type="http"
            ),
            hint=lambda endpoint: [*_variable_hint(endpoint), *_claude_code_hint(endpoint)],
        ),
        FileClient(
            name="claude-desktop",
            format="json",
            table="mcpServers",
            file=_desktop_file,
            entry=_desktop_entry,
            hint=_desktop_hint,
            holds_key=True,
        ),
        FileClient(
            name="cursor",
            format="json",
            table="mcpServers",
            file=lambda places: places.project / ".cursor" / "mcp.json",
            entry=lambda endpoint: _url_entry(endpoint, f"${{env:{endpoint.key_variable}}}"),
            hint=_variable_hint,
        ),
        FileClient(
            name="vscode",
            format="json",
            table="servers",
            file=lambda places: places.project / ".vscode" / "mcp.json",
            entry=lambda endpoint: _url_entry(endpoint, f"${{input:{VSCODE_INPUT}}}", type="http"),
            hint=_vscode_hint,
        ),
        FileClient(
            name="codex",
            format="toml",
            table="mcp_servers",
            file=_codex_file,
            entry=lambda endpoint: {
                "url": endpoint.url,
                "bearer_token_env_var": endpoint.key_variable,
            },
            hint=_variable_hint,
        ),
    )
}
CODE_CLIENTS: dict[str, CodeClient] = {
    one.name: one
    for one in (
        CodeClient(name="openai-agents", snippet=_openai_agents),
        CodeClient(name="langchain", snippet=_langchain),
    )
}


def vscode_input() -> dict[str, Any]:
    """The question whose answer the entries of VS Code refer to."""
    return {
        "type": "promptString",
        "id": VSCODE_INPUT,
        "description": "Agent key for Behavry",
        "password": True,
    }
