"""Tokenised documents on disk."""
