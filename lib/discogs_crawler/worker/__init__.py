"""From the queue through the API to the store."""
