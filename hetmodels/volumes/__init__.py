"""Representations of a density, one file each; `protocol` says what they can do."""
