"""Generative models of cryo-EM heterogeneity over one image likelihood."""

__version__ = "0.1.0"
