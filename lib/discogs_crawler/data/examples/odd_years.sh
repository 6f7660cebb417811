#!/bin/sh
# Print the releases whose year is not that of their release date: odd_years.sh < changes.jsonl
exec jq -r '.data | select(. != null and (.released // "") != "")
    | select((.released[:4] | tonumber? // 0) != .year)
    | "https://www.discogs.com/release/\(.id): \(.released), but \(.year)"'
