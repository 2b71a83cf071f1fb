"""What tests of services on Replank need: real databases and topics per test, traces, faults, and no sleeping.

The fixtures are in `replank.testing.plugin`, which pytest loads by itself once ``replank[testing]`` is installed.
"""

from replank.testing.wait import eventually

__all__ = ["eventually"]
