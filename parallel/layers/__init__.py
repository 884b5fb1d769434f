"""Layers under tensor and expert parallelism, and how tensors are cut."""
