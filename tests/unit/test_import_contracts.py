"""Breaks each import contract on purpose, in a copy of the tree, and expects to be told."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dev.import_contracts import allowed
from tests.promises import promise

ROOT = Path(__file__).resolve().parents[2]

# contract, where the violation is planted, the line that breaks it
SEEDS = [
    ("independent", "services/proxy/seeded.py", "import services.audit.settings"),
    ("common", "services/common/seeded.py", "import services.control.settings"),
    ("layers", "services/audit/seeded.py", "import services.audit.app"),
    ("pure", "services/authorizer/seeded.py", "import behavry.authorizer.v1.authorizer_pb2"),
    ("command", "services/entitlements/seeded.py", "import services.cli.__main__"),
    ("command-imports", "services/cli/seeded.py", "import services.proxy.settings"),
    ("beside-the-client", "services/mcp_stdio/seeded.py", "import services.proxy.headers"),
    ("one-jose", "services/common/seeded.py", "import jwt"),
    ("no-mcp-sdk", "services/proxy/seeded.py", "import mcp.types"),
    ("fastapi", "services/proxy/seeded.py", "from fastapi import FastAPI"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(
        ROOT / "services", tmp_path / "services", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(ROOT / "dev", tmp_path / "dev", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(tree: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).parent / "lint-imports"
    chosen = [f"--contract={c}" for c in contracts]
    return subprocess.run(
        [command, "--no-cache", "--no-logo", *chosen],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@promise("imports:contracts-hold")
def test_the_tree_as_it_is_keeps_every_contract(tree: Path) -> None:
    result = lint_imports(tree)

    assert 0 == result.returncode, result.stdout


@promise("imports:violation-caught")
@pytest.mark.parametrize(("contract", "where", "line"), SEEDS, ids=[s[0] for s in SEEDS])
def test_a_seeded_violation_is_caught(tree: Path, contract: str, where: str, line: str) -> None:
    seeded = tree / where
    seeded.write_text(f'"""Breaks a contract."""\n\n{line}\n')

    result = lint_imports(tree, contract)

    assert 1 == result.returncode, result.stdout + result.stderr
    module = where.removesuffix(".py").replace("/", ".")
    assert module in result.stdout


def test_every_contract_has_its_seed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    declared = [
        line.split('"')[1]
        for block in text.split("[[tool.importlinter.contracts]]")[1:]
        for line in block.splitlines()
        if line.startswith("id = ")
    ]

    assert declared == [contract for contract, _, _ in SEEDS]


@pytest.mark.parametrize(
    ("importer", "imported", "expected"),
    [
        ("app", "pipeline", True),
        ("pipeline", "app", False),
        ("pipeline", "store", True),
        ("store", "pipeline", False),
        ("store", "clients", False),
        ("api.tools", "api.problems", True),
        ("servicer", "chain", True),
        ("chain", "store", False),
        ("chain", "record", True),
        ("chain", "engine.protocol", True),
        ("chain", "engine.opa", False),
    ],
)
def test_imports_go_inwards(importer: str, imported: str, *, expected: bool) -> None:
    assert expected == allowed(f"services.audit.{importer}", f"services.audit.{imported}")
