"""Ranks and runs that a command starts for itself: their environment, the server they are forked from, the pool."""
