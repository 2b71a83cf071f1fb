"""Field types that several contracts share."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AwareDatetime, StringConstraints

#: Every reference, to an actor or to a thing, is ``type:id`` as in OpenFGA: no blanks, and neither ``#`` nor ``*``,
#: which would make it a set of actors.
REFERENCE_PATTERN: Final = r"^[^\s:#*@]{1,64}:[^\s:#*]{1,192}$"
RELATION_PATTERN: Final = r"^[^\s:#*@]{1,50}$"

#: Who acts: the subject of a token, such as ``user:ada`` or ``service:archiver``.
Actor = Annotated[str, StringConstraints(pattern=REFERENCE_PATTERN)]
#: What is acted on, such as ``migration:018f…`` or ``system:replank``.
Thing = Annotated[str, StringConstraints(pattern=REFERENCE_PATTERN)]
#: How an actor relates to a thing, such as ``owner``.
Relation = Annotated[str, StringConstraints(pattern=RELATION_PATTERN)]
#: A short text for people, on one line.
Label = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
#: A longer text for people.
Explanation = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
#: A name that appears in settings, metrics and URLs.
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
#: SHA-256, as 64 lower-case hexadecimal digits.
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
#: An instant with its offset.
Instant = AwareDatetime
