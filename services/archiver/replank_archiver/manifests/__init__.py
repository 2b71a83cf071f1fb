"""Manifests: what is kept in object storage, with the digest that proves it."""
