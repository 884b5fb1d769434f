"""What a configuration must fulfil before anything starts."""
