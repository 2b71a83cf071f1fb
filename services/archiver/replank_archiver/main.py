"""The ASGI application."""

from __future__ import annotations

from fastapi import FastAPI

from replank_archiver.application import compose
from replank_archiver.settings import ArchiverSettings


def create_app() -> FastAPI:
    """The application, with settings from the environment."""
    return compose(ArchiverSettings.load()).app()
