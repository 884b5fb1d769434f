"""What happens at each step of a run."""
