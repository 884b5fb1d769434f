"""What a configuration must know of each task: its lengths and its rules."""
