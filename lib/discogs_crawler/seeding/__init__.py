"""From hashes to wants to the queue, and the results back."""
