"""Streamed data sets, which are not on disk."""
