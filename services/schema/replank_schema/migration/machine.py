"""Which phases may follow which, and what must be so before: the rules, without any of the doing.

A migration is asked to go somewhere. Where nothing has to be done to get there it is there at once; else it is
*moving*, and the work that gets it there says when it has arrived, or that it gave up. `Standing` is all that these
rules know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Final

from replank.errors import ReplankError
from replank_schema.migration.model import FORWARD, OVER, Condition, Phase, Standing


class Command(StrEnum):
    START = "start"
    ADVANCE = "advance"
    PAUSE = "pause"
    RESUME = "resume"
    ROLLBACK = "rollback"
    CANCEL = "cancel"
    RETIRE = "retire"


#: Phases to which a rollback may lead short of the very beginning: the tables stay, and go on being written.
WAYPOINTS: Final = (Phase.VERIFYING, Phase.SHADOW_READS, Phase.NEW_WITH_FALLBACK)
_RUNNING: Final = frozenset(FORWARD[1:-1])
_STARTABLE: Final = frozenset({Phase.PLANNED, Phase.ROLLED_BACK})
_RETIRABLE: Final = frozenset({Phase.COMPLETED, Phase.ROLLED_BACK, Phase.CANCELLED})


class TransitionRefused(ReplankError):
    """A migration cannot be asked for this now. ``conditions`` are those that are not met."""

    def __init__(self, standing: Standing, asked: str, conditions: Sequence[Condition]) -> None:
        reasons = "; ".join(f"{condition.name}: {condition.detail}" for condition in conditions)
        fixes = " ".join(dict.fromkeys(f"{condition.fix}." for condition in conditions if condition.fix))
        super().__init__(f"{asked} is refused in the phase {standing.phase}: {reasons}", fix=fixes.removesuffix("."))
        self.standing = standing
        self.asked = asked
        self.conditions = list(conditions)


def following(phase: Phase) -> Phase | None:
    """The phase that a migration advances to from here, ``None`` where it does not advance."""
    if phase not in _RUNNING and phase is not Phase.PLANNED:
        return Phase.CAPTURING if phase is Phase.ROLLED_BACK else None
    return FORWARD[FORWARD.index(phase) + 1]


def ask(standing: Standing, command: Command, *, to: Phase | None = None) -> Standing:
    """Where a migration stands after a command. ``to`` is where a rollback shall lead, by default all the way back.

    Says nothing of the conditions of a start or an advance: they need evidence (`replank_schema.migration.conditions`).
    Raises `TransitionRefused`.
    """
    match command:
        case Command.START:
            _demand(standing, command, standing.phase in _STARTABLE, f"it is {standing.phase} already", _START_FIX)
            after = Standing(Phase.CAPTURING, run=standing.run + 1)
        case Command.ADVANCE:
            after = _advance(standing)
        case Command.PAUSE:
            working = standing.phase in _RUNNING
            _demand(standing, command, working, f"nothing runs in {standing.phase}", "pause a migration that runs")
            _demand(standing, command, not standing.paused, "it is paused already", "resume it")
            _demand_still(standing, command)
            after = replace(standing, paused=True)
        case Command.RESUME:
            _demand(standing, command, standing.paused, "it is not paused", "pause is what resume ends")
            after = replace(standing, paused=False)
        case Command.ROLLBACK:
            after = _roll_back(standing, to)
        case Command.RETIRE:
            ended = standing.phase in _RETIRABLE
            _demand(standing, command, ended, f"it has not ended in {standing.phase}", _RETIRE_FIX)
            _demand(standing, command, standing.run > 0, "it was never started, so nothing of it is left", _NOTHING_FIX)
            after = Standing(Phase.RETIRING, Phase.RETIRED, run=standing.run)
        case _:
            may = standing.phase in FORWARD
            _demand(standing, command, may, f"{standing.phase} cannot be cancelled", _CANCEL_FIX)
            after = (
                replace(standing, phase=Phase.CANCELLED)
                if standing.phase is Phase.PLANNED
                else Standing(Phase.ROLLING_BACK, Phase.CANCELLED, run=standing.run)
            )
    return after


def arrive(standing: Standing) -> Standing:
    """Where it stands when the work has got it to where it was moving. Raises `TransitionRefused` if it was not."""
    if standing.moving_to is None:
        raise TransitionRefused(standing, "arrive", [Condition("moving", False, "it is not moving anywhere")])
    return Standing(standing.moving_to, run=standing.run)


def give_up(standing: Standing) -> Standing:
    """Where it stands when the work has undone its way forward. There is none on the way back, nor at the end."""
    if standing.moving_to is None or standing.phase in (Phase.ROLLING_BACK, Phase.RETIRING):
        raise TransitionRefused(standing, "give up", [Condition("moving", False, "it is not moving forward")])
    return replace(standing, moving_to=None)


def _advance(standing: Standing) -> Standing:
    command = Command.ADVANCE
    _demand(standing, command, standing.phase in _RUNNING, f"{standing.phase} has no next phase", _ADVANCE_FIX)
    _demand_still(standing, command)
    _demand(standing, command, not standing.paused, "it is paused", "resume it first")
    target = FORWARD[FORWARD.index(standing.phase) + 1]
    # The writes move only when the work has moved them.
    return replace(standing, moving_to=target) if target is Phase.NEW_ONLY else replace(standing, phase=target)


def _roll_back(standing: Standing, to: Phase | None) -> Standing:
    goal = to or Phase.ROLLED_BACK
    command = Command.ROLLBACK
    if standing.phase is Phase.ROLLING_BACK:
        # It may be asked to go further back than it was, never to stop on its way.
        further = goal is Phase.ROLLED_BACK and standing.moving_to in WAYPOINTS
        detail = f"it is on its way back to {standing.moving_to}"
        _demand(standing, command, further, detail, "wait until it is there")
        return replace(standing, moving_to=goal)
    _demand(standing, command, standing.phase not in OVER, "a retirement is not taken back", _OVER_FIX)
    running = standing.phase in _RUNNING or standing.phase is Phase.COMPLETED
    _demand(standing, command, running, f"there is nothing to take back in {standing.phase}", _ROLLBACK_FIX)
    if to is not None:
        known = to in WAYPOINTS and FORWARD.index(to) < FORWARD.index(standing.phase)
        names = ", ".join(WAYPOINTS)
        detail = f"{to} is no earlier phase that it can go back to"
        _demand(standing, command, known, detail, f"name an earlier one of {names}, or none to go all the way back")
    return Standing(Phase.ROLLING_BACK, goal, run=standing.run)


_START_FIX: Final = "start a migration that is planned or was rolled back; advance one that runs"
_ADVANCE_FIX: Final = "advance a migration that was started and has not ended"
_CANCEL_FIX: Final = "wait until it has gone back, or retire one that has ended"
_ROLLBACK_FIX: Final = "cancel a migration that was not started"
_RETIRE_FIX: Final = "retire a migration that is completed, rolled back or cancelled"
_NOTHING_FIX: Final = "nothing: its name is free as it is"
_OVER_FIX: Final = "what the tables hold is in no other store: plan another migration from wherever it is wanted"


def _demand_still(standing: Standing, command: Command) -> None:
    _demand(
        standing,
        command,
        standing.moving_to is None,
        f"it is on its way to {standing.moving_to}",
        "wait until it is there, or roll it back",
    )


def _demand(standing: Standing, command: Command, condition: bool, detail: str, fix: str) -> None:
    if not condition:
        raise TransitionRefused(standing, command, [Condition("phase", False, detail, fix)])
