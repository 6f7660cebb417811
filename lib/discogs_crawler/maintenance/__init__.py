"""The upkeep of a store: merge, repack, back up, check, reclean, convert."""
