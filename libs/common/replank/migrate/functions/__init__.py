"""The functions that a mapping is compiled to, a module for each or for two that belong together."""
