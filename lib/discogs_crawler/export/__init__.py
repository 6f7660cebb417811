"""From the store to its consumers."""
