"""Optimizers over tagged parameters."""
