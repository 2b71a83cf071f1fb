"""The local stack: real servers and services as processes, started, watched, stopped and logged."""

from replank_local.stack import Stack

__all__ = ["Stack"]
