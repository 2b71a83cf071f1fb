"""Which way `make up` goes, and that no command loses sight of what is in Docker's volumes.

The `docker` here only answers as the real one does to the questions that decide it; nothing is started.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from replank_local import compose, state
from replank_local.errors import StackError
from replank_local.progress import Progress
from replank_local.state import State

ENGINE = '[ "$1" = info ] && echo 28.2.2'
PLUGIN = '[ "$1 $2" = "compose version" ] && echo 5.6.1'
HERE = '[ "$1 $2" = "context inspect" ] && echo unix:///var/run/docker.sock'
ELSEWHERE = '[ "$1 $2" = "context inspect" ] && echo ssh://builder'


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program that is found is called docker; it says what a test writes to it."""
    for name in ("REPLANK_STACK", "DOCKER_HOST"):
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent))
    return program


def says(program: Path, *answers: str) -> None:
    program.write_text("\n".join(["#!/bin/sh", *(f"{answer} && exit 0" for answer in answers), "exit 1", ""]))
    program.chmod(0o755)


def test_without_a_docker_it_is_processes(docker: Path) -> None:
    assert compose.why_not() == "no Docker engine answers"
    assert compose.choose_way(Progress()) == "native"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], "no Docker engine answers"),
        ([ENGINE], "docker has no compose plugin"),
        ([ENGINE, PLUGIN, ELSEWHERE], "the Docker engine is on another machine (ssh://builder)"),
    ],
    ids=["no engine", "no plugin", "another machine"],
)
def test_it_is_processes_where_the_composition_could_not_run_and_an_error_where_docker_was_demanded(
    docker: Path, monkeypatch: pytest.MonkeyPatch, answers: list[str], reason: str
) -> None:
    says(docker, *answers)
    assert compose.choose_way(Progress()) == "native"
    monkeypatch.setenv("REPLANK_STACK", "docker")
    with pytest.raises(StackError) as refused:
        compose.choose_way(Progress())
    assert reason in refused.value.message


def test_it_is_docker_where_an_engine_of_this_machine_answers_unless_processes_are_wanted(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(docker, ENGINE, PLUGIN, HERE)
    assert compose.choose_way(Progress()) == "docker"
    monkeypatch.setenv("REPLANK_STACK", "native")
    assert compose.choose_way(Progress()) == "native"


def test_docker_host_goes_before_the_context(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(docker, ENGINE, PLUGIN, HERE)
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    assert "another machine (tcp://10.0.0.1:2375)" in compose.why_not()
    says(docker, ENGINE, PLUGIN, ELSEWHERE)
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/1000/docker.sock")
    assert compose.why_not() == ""


def test_another_stacks_variables_do_not_reach_the_composition(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REPLANK_PORT_POSTGRES", "REPLANK_PASSWORD_S3", "COMPOSE_FILE", "COMPOSE_PROJECT_NAME"):
        monkeypatch.setenv(name, "of-another-stack")
    monkeypatch.setenv("REPLANK_BASE_IMAGE", "of-my-choice")
    seen = tmp_path / "seen"
    docker.write_text(f"#!/bin/sh\nexport -p >{seen}\n")
    docker.chmod(0o755)
    compose.logs(tmp_path, None, follow=False, lines=1)
    assert "of-another-stack" not in seen.read_text()
    assert "of-my-choice" in seen.read_text()


async def test_clean_keeps_sight_of_volumes_that_it_cannot_remove(docker: Path, tmp_path: Path) -> None:
    state.save(tmp_path, State())  # as `down` leaves it
    (tmp_path / "compose.env").write_text("")
    with pytest.raises(StackError, match="Docker volumes"):
        await compose.clean(tmp_path, Progress())
    assert (tmp_path / "compose.env").exists()
    says(docker, ENGINE, PLUGIN, HERE, f'[ "$5" = --volumes ] && : >{tmp_path}/removed')
    await compose.clean(tmp_path, Progress())
    assert (tmp_path / "removed").exists()
    assert not (tmp_path / "compose.env").exists()


async def test_clean_leaves_a_running_composition_alone(docker: Path, tmp_path: Path) -> None:
    says(docker, ENGINE, PLUGIN, HERE)
    state.save(tmp_path, State(way="docker"))
    (tmp_path / "compose.env").write_text("")
    with pytest.raises(StackError, match="running"):
        await compose.clean(tmp_path, Progress())


async def test_clean_asks_no_docker_where_there_never_was_a_composition(docker: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    says(docker, f": >{asked}")
    await compose.clean(tmp_path, Progress())
    assert not asked.exists()
