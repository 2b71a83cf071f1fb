"""The two patterns in which a mode may keep its schemas, and the phases of the way from the old one to the new one.

*Old*: a row has everything, its content too (``inline_schema``). *New*: rows have what is known of a content, which is
in the object store. From the start of a migration until the old rows are archived every write goes to both, in one
transaction, so there is a way back at every moment which keeps every write. Pure, but for `Switch`, which asks a flag.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Final

from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext

from replank.contracts.schema import VaultMode
from replank.migrate.client import Mode
from replank_schema.vault.model import VaultError

FLAG: Final = "USE_OPTIMIZED_SCHEMAS"
"""Whether a mode (the targeting key) may read from the new pattern. Before anything was written it also chooses the
pattern that a mode begins with."""


class Phase(StrEnum):
    """How far a mode is. What the words of the engine's phases mean here: see `writes_old`, `writes_new`, `reads`."""

    NEW = "new"
    """It began with the new pattern. There is nothing to migrate, and no way back to what never was."""
    PLANNED = "planned"
    BACKFILLING = "backfilling"
    VERIFYING = "verifying"
    NEW_WITH_FALLBACK = "new_with_fallback"
    NEW_ONLY = "new_only"
    COMPLETED = "completed"
    ARCHIVING = "archiving"
    """The old rows were offered to the archiver; they are still written."""
    ARCHIVED = "archived"
    """Old rows are gone, and no more are written."""
    ROLLED_BACK = "rolled_back"

    @property
    def writes_old(self) -> bool:
        return self not in FINAL

    @property
    def writes_new(self) -> bool:
        return self not in {Phase.PLANNED, Phase.ROLLED_BACK}

    @property
    def new_is_whole(self) -> bool:
        """Whether the new pattern has every row of the old one, but for those that were rejected."""
        return self not in {Phase.PLANNED, Phase.ROLLED_BACK, Phase.BACKFILLING}

    def reads(self, *, optimized: bool) -> Mode:
        """From where an endpoint reads for which no flag says otherwise; only asked where both patterns are whole."""
        if self is Phase.VERIFYING:
            return "compare"
        if not optimized:
            return "kv"
        return "new_with_fallback" if self is Phase.NEW_WITH_FALLBACK else "new"


FINAL: Final = frozenset({Phase.NEW, Phase.ARCHIVED})
"""Phases that no mode ever leaves."""
STARTABLE: Final = frozenset(
    {Phase.PLANNED, Phase.ROLLED_BACK, Phase.BACKFILLING, Phase.VERIFYING, Phase.NEW_WITH_FALLBACK}
)
REVERSIBLE: Final = frozenset(
    {
        Phase.BACKFILLING,
        Phase.VERIFYING,
        Phase.NEW_WITH_FALLBACK,
        Phase.NEW_ONLY,
        Phase.COMPLETED,
        Phase.ARCHIVING,
    }
)
FOLLOWING: Final = {Phase.NEW_WITH_FALLBACK: Phase.NEW_ONLY, Phase.NEW_ONLY: Phase.COMPLETED}
"""Where somebody may advance to; the phases before are left by the job, those after by archiving."""


class NeedsOptimizedSchemas(VaultError):
    """The old pattern cannot do this."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: that needs the optimized schemas, which this mode does not have, or does not have alone",
            fix="migrate the mode (POST pattern/migrate), and look at its phase (GET pattern)",
        )


class MoveRefused(VaultError):
    """What was asked of the migration is not possible in its phase."""


class Switch:
    """The flag of one mode, and whether the mode has arrived where it stays: then nobody has to look again.

    ``flags`` gives the client to ask; ``default`` is what holds where the flag does not reach the mode.
    """

    def __init__(
        self,
        mode: VaultMode,
        *,
        default: bool = True,
        flags: Callable[[], Awaitable[OpenFeatureClient]] | None = None,
    ) -> None:
        self.settled = False
        self._context = EvaluationContext(targeting_key=mode)
        self._default = default
        self._flags = flags

    async def optimized(self) -> bool:
        """Raises `replank.errors.DependencyUnavailable` when the flags were never loaded."""
        if self._flags is None:
            return self._default
        client = await self._flags()
        return client.get_boolean_value(FLAG, self._default, self._context)
