"""Redis: the connection, the private server, the queue and the limiter."""
