"""Git: repositories, commits, the remote, and the layouts of the store."""
