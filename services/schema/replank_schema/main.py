"""The ASGI application."""

from __future__ import annotations

from fastapi import FastAPI

from replank_schema.application import compose
from replank_schema.settings import SchemaSettings


def create_app() -> FastAPI:
    """The application, with settings from the environment."""
    return compose(SchemaSettings.load()).app()
