"""What is claimed, measured: equality of layouts, speed against peers, studies of learning."""
