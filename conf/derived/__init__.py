"""What follows from a configuration by arithmetic."""
