"""Settings: read once, checked before anything starts, and never a secret in the open."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from services.common.service_settings import ServiceSettings, socket
from services.common.settings import (
    SettingsError,
    effective,
    load,
    load_or_exit,
    setting,
    under,
)

PLANTED = "planted-secret-value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    root: Path = setting("T_ROOT")
    below: Path = setting("T_BELOW", derived=under("root", "a", "b"))
    count: int = setting("T_COUNT", default=3, minimum=1, maximum=9)
    kind: Literal["one", "two_words"] = setting("T_KIND", default="one")
    flag: bool = setting("T_FLAG", default=False)
    names: tuple[str, ...] = setting("T_NAMES", default=())
    maybe: Path | None = setting("T_MAYBE", default=None)
    secret: int = setting("T_SECRET", default=0, secret=True)


def test_defaults_hold_and_paths_derive_from_earlier_ones() -> None:
    expected = Sample(
        root=Path("/r"), below=Path("/r/a/b"), count=3, kind="one", flag=False, names=(),
        maybe=None, secret=0,
    )  # fmt: skip

    assert expected == load(Sample, {"T_ROOT": "/r"})


def test_each_type_is_parsed() -> None:
    env = {
        "T_ROOT": "/r", "T_BELOW": "/else", "T_COUNT": "9", "T_KIND": "two-words", "T_FLAG": "Yes",
        "T_NAMES": "a, b,,c ", "T_MAYBE": "/m", "T_SECRET": "7",
    }  # fmt: skip
    expected = Sample(
        root=Path("/r"), below=Path("/else"), count=9, kind="two_words", flag=True,
        names=("a", "b", "c"), maybe=Path("/m"), secret=7,
    )  # fmt: skip

    assert expected == load(Sample, env)


def test_an_empty_value_is_an_unset_one() -> None:
    assert 3 == load(Sample, {"T_ROOT": "/r", "T_COUNT": ""}).count


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("T_COUNT", "many", "a whole number"),
        ("T_COUNT", "0", "from 1 to 9"),
        ("T_COUNT", "10", "from 1 to 9"),
        ("T_COUNT", "1.5", "a whole number"),
        ("T_KIND", "three", "one, two_words"),
        ("T_FLAG", "maybe", "true, false"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as bad:
        load(Sample, {"T_ROOT": "/r", name: value})

    assert f"{name}={value!r}" in str(bad.value)
    assert allowed in str(bad.value)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(SettingsError, match="T_ROOT is not set"):
        load(Sample, {})


def test_a_bad_secret_is_named_without_its_value() -> None:
    with pytest.raises(SettingsError) as bad:
        load(Sample, {"T_ROOT": "/r", "T_SECRET": PLANTED})

    assert "T_SECRET=***" in str(bad.value)
    assert PLANTED not in str(bad.value)


def test_effective_settings_mask_secrets() -> None:
    shown = effective(load(Sample, {"T_ROOT": "/r", "T_SECRET": "424242"}))

    assert ("/r/a/b", "***") == (shown["T_BELOW"], shown["T_SECRET"])
    assert "424242" not in str(shown)


def test_a_bad_setting_ends_a_process_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("T_ROOT", "/r")
    monkeypatch.setenv("T_COUNT", "many")
    with pytest.raises(SystemExit) as ended:
        load_or_exit(Sample)
    said = capsys.readouterr()

    assert (2, "") == (ended.value.code, said.out)
    assert "T_COUNT" in said.err


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(ServiceSettings):
    address: str = setting("T_ADDRESS", derived=socket("audit"))

    def check(self) -> None:
        if self.mode == "data_plane" and self.env == "development":
            raise SettingsError("a data plane is never for development")


def test_a_service_needs_its_state_directory_alone() -> None:
    made = load(Service, {"BEHAVRY_STATE_DIR": "/s"})

    assert (Path("/s/run"), Path("/s/peers")) == (made.run_dir, made.peers_dir)
    assert ("unix:/s/run/audit.sock", "production", "standalone") == (
        made.address, made.env, made.mode,
    )  # fmt: skip


def test_without_one_it_lives_in_the_users_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/u/data")
    there = load(Service, {}).state_dir
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/srv/u")

    assert Path("/srv/u/data/behavry") == there
    assert Path("/srv/u/.local/share/behavry") == load(Service, {}).state_dir


def test_two_settings_that_do_not_go_together_are_refused() -> None:
    env = {"BEHAVRY_STATE_DIR": "/s", "BEHAVRY_ENV": "development"}
    assert "standalone" == load(Service, env).mode

    with pytest.raises(SettingsError):
        load(Service, {**env, "BEHAVRY_MODE": "data-plane"})
