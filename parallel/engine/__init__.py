"""What reduces gradients and updates weights, behind one protocol."""
