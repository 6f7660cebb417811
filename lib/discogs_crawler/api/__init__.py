"""Discogs's API: the client, the cleaning rules, JSON that keeps every number as it is."""
