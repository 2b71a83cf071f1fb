"""The fixtures come from `replank.testing.plugin`, which pytest loads by itself."""

pytest_plugins = ["pytester"]
