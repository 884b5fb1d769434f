"""What a user typed, into typed values: overrides, fields, conversion."""
