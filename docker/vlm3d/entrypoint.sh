#!/bin/sh
# The contract's folders; what is given to `docker run` comes after them, e.g. --time-budget 170.
set -eu
if [ "${1:-}" = "--self-test" ]; then
    exec ctflow challenge --checkpoint /weights "$@"
fi
exec ctflow challenge --input /input/prompts.json --output /output --progress /checkpoint --checkpoint /weights "$@"
