#!/bin/sh
# entrypoint.sh COMMAND...: run the command with the secrets of this container as environment variables: each file of SECRETS
# (/run/secrets) whose name is one of a variable, in capitals. So passwords are in no description of a container, nor in its image.
set -eu
for file in "${SECRETS:-/run/secrets}"/[A-Z]*; do
  if [ -f "$file" ]; then
    value=$(cat "$file")
    export "${file##*/}=$value"
  fi
done
exec "$@"
