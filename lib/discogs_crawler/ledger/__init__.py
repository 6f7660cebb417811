"""The SQLite database: its schema, its rows, and the place of each consumer."""
