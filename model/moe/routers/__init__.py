"""Which expert each token goes to."""
