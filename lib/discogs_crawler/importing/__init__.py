"""From a dump to the store, without the API."""
