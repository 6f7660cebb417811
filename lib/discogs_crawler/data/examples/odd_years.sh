#!/bin/sh
# Print the releases whose year is not that of their release date: odd_years.sh < changes.jsonl
# A text may have half of a surrogate pair, at which jq stops: it is the only \ud in a record.
LC_ALL=C sed 's/\\ud[89a-f]../\\ufffd/g' | jq -r '.data | select(. != null and (.released // "") != "")
    | select((.released[:4] | tonumber? // 0) != .year)
    | "https://www.discogs.com/release/\(.id): \(.released), but \(.year)"'
