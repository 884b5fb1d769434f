"""What is learnt from text: how a window becomes inputs and targets."""
