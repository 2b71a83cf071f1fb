"""What a stack knows about itself survives: whole, private, and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from replank_local import state
from replank_local.errors import StackError
from replank_local.processes import Identity
from replank_local.state import State


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = State(ports={"kafka": 29092}, processes={"kafka": Identity(pid=7, started="9@abcdef01")})
    state.save(tmp_path, saved)
    assert state.load(tmp_path) == saved


def test_a_folder_without_a_stack_has_an_empty_state(tmp_path: Path) -> None:
    assert state.load(tmp_path) == State()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ports": {"kafka": "x"}}', '{"unknown": 1}'])
def test_a_state_that_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StackError, match=r"state\.json.*by hand"):
        state.load(tmp_path)


def test_a_private_file_is_replaced_whole_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    state.write_private(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["secret"]
