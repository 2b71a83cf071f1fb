"""Which parts of the work a migration needs, by where it stands. Pure."""

from __future__ import annotations

from enum import StrEnum

from replank_schema.migration.model import Phase, Standing
from replank_schema.migration.report import Facts


class Part(StrEnum):
    """A part of the work. Some last as long as they are needed, the others come to an end."""

    INSTALLING = "installing"
    RELAY = "relay"
    APPLIER = "applier"
    REVERSE_RELAY = "reverse_relay"
    REVERSE_APPLIER = "reverse_applier"
    BACKFILL = "backfill"
    INDEXES = "indexes"
    REFERENCES = "references"
    COMPARISON = "comparison"
    REVERSE_COMPARISON = "reverse_comparison"
    FLIP = "flip"
    CONSTRAINTS = "constraints"
    COMPLETION = "completion"
    WAY_BACK = "way_back"
    RETIREMENT = "retirement"
    OBSERVER = "observer"


#: They carry what is written from one store to the other.
FORWARD_CARRIERS = frozenset({Part.RELAY, Part.APPLIER})
CARRIERS = FORWARD_CARRIERS | {Part.REVERSE_RELAY, Part.REVERSE_APPLIER}
#: In these both stores are written, and comparisons run.
COMPARABLE = frozenset({Phase.VERIFYING, Phase.SHADOW_READS, Phase.NEW_WITH_FALLBACK, Phase.NEW_ONLY})
#: They cost, and can wait: a pause stops them.
PAUSABLE = frozenset(
    {Part.BACKFILL, Part.INDEXES, Part.REFERENCES, Part.COMPARISON, Part.REVERSE_COMPARISON, Part.CONSTRAINTS}
)


def needed(standing: Standing, facts: Facts, *, same_transaction: bool) -> frozenset[Part]:
    """The parts that must run now; all others must not.

    Capture and appliers go on in a pause: what is written meanwhile would otherwise only wait, and grow. Both
    directions have theirs in every phase between, since the authority may have moved, or move back, at any moment.
    """
    parts = _of_phase(standing, facts)
    if standing.paused:
        parts -= PAUSABLE
    if same_transaction:
        parts -= CARRIERS
    return parts | {Part.OBSERVER} if parts else parts


def _of_phase(standing: Standing, facts: Facts) -> frozenset[Part]:
    phase = standing.phase
    parts: set[Part] = set()
    if phase is Phase.ROLLING_BACK:
        parts |= CARRIERS | {Part.WAY_BACK}
    elif phase is Phase.NEW_ONLY:
        parts |= CARRIERS | {Part.REVERSE_COMPARISON, Part.CONSTRAINTS}
    elif phase in COMPARABLE:
        # What was carried across is compared for as long as it is written twice.
        parts |= FORWARD_CARRIERS | {Part.INDEXES, Part.REFERENCES, Part.COMPARISON}
    elif phase is Phase.BACKFILLING:
        parts |= FORWARD_CARRIERS | {Part.BACKFILL}
    elif phase is Phase.CAPTURING:
        parts |= FORWARD_CARRIERS if facts.installed else {Part.INSTALLING}
    elif phase is Phase.COMPLETED:
        parts.add(Part.COMPLETION)
    elif phase is Phase.RETIRING:
        parts.add(Part.RETIREMENT)
        if facts.retirement is not None and facts.retirement.closed == "source":
            # What was told last is published before its topic goes: nobody else may be there to do it.
            parts |= {Part.RELAY, Part.REVERSE_RELAY}
    if standing.moving_to is Phase.NEW_ONLY:
        parts |= CARRIERS | {Part.FLIP}
    reached = {
        Part.BACKFILL: facts.backfill is not None,
        Part.INDEXES: facts.indexes,
        Part.CONSTRAINTS: facts.constraints,
        Part.COMPLETION: facts.reverse_removed,
    }
    return frozenset(part for part in parts if not reached.get(part, False))
