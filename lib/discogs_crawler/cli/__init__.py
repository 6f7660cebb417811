"""What every script in `bin/` shares: arguments, logs, progress, health check, shutdown."""
