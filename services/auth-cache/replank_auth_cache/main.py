"""The ASGI application."""

from __future__ import annotations

from fastapi import FastAPI

from replank_auth_cache.application import compose
from replank_auth_cache.settings import AuthCacheSettings


def create_app() -> FastAPI:
    """The application, with settings from the environment."""
    return compose(AuthCacheSettings.load()).app()
