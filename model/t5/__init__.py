"""T5 building blocks (arXiv 1910.10683)."""
