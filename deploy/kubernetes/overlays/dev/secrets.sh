#!/bin/sh
# Reads what `fleet secrets --compose` prints and writes it as the three secrets of this overlay.
set -eu
umask 077
usage="Nothing was written. Usage: fleet secrets --compose | $0"
if [ -t 0 ]; then
  echo "$usage" >&2
  exit 2
fi
cd "$(dirname "$0")"

# not split at every `=`: a key in base64 ends with one
while read -r line; do
  value=${line#*=}
  case "${line%%=*}" in
    AINFERA_MASTER_KEY) master_key=$value ;;
    AINFERA_INTERNAL_KEY) internal_key=$value ;;
    POSTGRES_PASSWORD) postgres_password=$value ;;
    OWNER_PASSWORD) owner_password=$value ;;
    APP_PASSWORD) app_password=$value ;;
    CALLER_PASSWORD) caller_password=$value ;;
    REDIS_PASSWORD) redis_password=$value ;;
  esac
done

# all of them before the first file, so that none is left half done
for name in master_key internal_key postgres_password owner_password app_password \
  caller_password redis_password; do
  eval "value=\${$name:-}"
  if [ -z "$value" ]; then
    echo "The input has no $name. $usage" >&2
    exit 2
  fi
done

cat >ainfera.secrets.env <<ENV
DATABASE_URL=postgresql://ainfera_app:${app_password}@postgres/ainfera
CALLER_DATABASE_URL=postgresql://ainfera_caller:${caller_password}@postgres/ainfera
REDIS_URL=redis://:${redis_password}@valkey:6379/0
AINFERA_MASTER_KEY=${master_key}
AINFERA_INTERNAL_KEY=${internal_key}
ENV
cat >owner.secrets.env <<ENV
MIGRATION_DATABASE_URL=postgresql://ainfera_owner:${owner_password}@postgres/ainfera
ENV
cat >stores.secrets.env <<ENV
POSTGRES_PASSWORD=${postgres_password}
OWNER_PASSWORD=${owner_password}
APP_PASSWORD=${app_password}
CALLER_PASSWORD=${caller_password}
REDIS_PASSWORD=${redis_password}
ENV
