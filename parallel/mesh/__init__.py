"""The ranks of a run: axes, process groups, collectives, decisions."""
