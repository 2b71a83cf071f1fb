"""What the machine lacks is named, all of it at once, with how to get it; and the way a stack runs is never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from replank_local import compose, tools
from replank_local.artifacts import go_toolchain
from replank_local.credentials import Secrets
from replank_local.errors import MissingTools, StackError
from replank_local.progress import Progress
from replank_local.servers import SERVERS
from replank_local.state import State


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with none of the programs, and nothing in the cache."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("REPLANK_POSTGRES_BIN", str(tmp_path))


@pytest.mark.usefixtures("bare_machine")
def test_everything_that_is_missing_is_named_at_once_with_how_to_get_it() -> None:
    with pytest.raises(MissingTools) as refused:
        tools.require(SERVERS)
    text = str(refused.value)
    for thing, package in (
        ("PostgreSQL server >= 15", "apt-get install postgresql"),
        ("Java >= 17", "apt-get install default-jre-headless"),
        ("Maven", "apt-get install maven"),
        ("Go >= 1.21", "apt-get install golang-go"),
    ):
        assert thing in text
        assert package in text


@pytest.mark.usefixtures("bare_machine")
def test_jaeger_is_never_required() -> None:
    assert not tools.jaeger_possible()
    tools.require(["jaeger", "valkey-authorization"])


def test_an_older_go_is_told_to_fetch_the_toolchain_and_a_newer_one_is_not(tmp_path: Path) -> None:
    go_mod = tmp_path / "go.mod"
    go_mod.write_text("module x\n\ngo 99.1\n")
    assert go_toolchain(go_mod) == {"GOTOOLCHAIN": "auto"}
    go_mod.write_text("module x\n\ngo 1.18\n")
    assert go_toolchain(go_mod) == {}


@pytest.mark.parametrize(
    ("forced", "complaint"),
    [("podman", "REPLANK_STACK is 'podman'"), ("docker", "no Docker engine answers")],
)
@pytest.mark.usefixtures("bare_machine")
def test_a_way_that_cannot_be_gone_is_refused(monkeypatch: pytest.MonkeyPatch, forced: str, complaint: str) -> None:
    monkeypatch.setenv("REPLANK_STACK", forced)
    with pytest.raises(StackError, match=complaint):
        compose.choose_way(Progress())


@pytest.mark.usefixtures("bare_machine")
def test_without_docker_the_stack_is_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPLANK_STACK", raising=False)
    assert compose.choose_way(Progress()) == "native"


def test_the_composition_is_told_every_port_and_secret(tmp_path: Path) -> None:
    ports = {name: number for unit in SERVERS.values() for name, number in unit.ports.items()}
    told = compose.variables(tmp_path, State(ports=ports), Secrets(tmp_path / "secrets"))
    assert told["REPLANK_PORT_KAFKA"] == str(ports["kafka"])
    assert told["REPLANK_PORT_JAEGER_OTLP"] == str(ports["jaeger.otlp"])
    assert told["REPLANK_PASSWORD_POSTGRES"] == Secrets(tmp_path / "secrets").password("postgres")
    assert Path(told["REPLANK_SECRETS"]) == tmp_path / "compose-secrets"
