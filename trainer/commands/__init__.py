"""The commands that work on a trained run."""
