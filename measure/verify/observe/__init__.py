"""What is written down of a run while it computes, and the batches that it computes on."""
