"""What keeps values from doing harm: in a shell, in what is written down, in what is read."""
