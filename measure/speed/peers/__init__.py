"""A whole training step, and parts of it, against other programs that do the same work."""
