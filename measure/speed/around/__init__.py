"""What surrounds a training step: the data that it waits for, and the start of the programs."""
