"""The committed documents of the service say what the service is."""

from __future__ import annotations

from pathlib import Path

from replank.contracts import documents
from replank.serving import described
from replank_archiver.application import compose
from replank_archiver.settings import ArchiverSettings

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_the_committed_documents_are_current() -> None:
    for path, document in described(ArchiverSettings, compose).items():
        assert (REFERENCE / path).read_text() == documents.text(document), f"{path} is stale: run `make docs`"
