"""Pools and groups of Ray actors. The only package that imports Ray."""
