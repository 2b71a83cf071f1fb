"""The ASGI application."""

from __future__ import annotations

from fastapi import FastAPI

from replank_benchmark.application import compose
from replank_benchmark.settings import BenchmarkSettings


def create_app() -> FastAPI:
    """The application, with settings from the environment."""
    return compose(BenchmarkSettings.load()).app()
