"""What is going on: collected once, shown as terminal, HTML, JSON and metrics."""
