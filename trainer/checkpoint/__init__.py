"""Checkpoints of logical tensors: one committed directory, layout-free."""
