"""The XML dumps: download, verify, split into records, hash, convert to JSON."""
