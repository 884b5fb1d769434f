"""How ranks cooperate: topology, process groups, collectives, tensor and expert parallelism, the engine.

Knows nothing of T5.
"""
