#!/bin/sh
# Start as what this server is at this moment: the master, or a follower of it. Whom to ask, in
# this order: the Sentinels; what our own Sentinel last wrote down; on the very first start, the
# first server is master. Whoever is wrong about it is put right by the Sentinels.
#
# SELF and FIRST are names, PEERS all names; PASSWORD is the servers' own.
set -eu

master=""
for peer in $PEERS; do
  answer=$(timeout 2 valkey-cli -h "$peer" -p 26379 sentinel get-master-addr-by-name ainfera \
    2>/dev/null | head -n 1 || true)
  # an error message has spaces in it, a name has none
  case "$answer" in "" | *" "*) ;; *) master=$answer && break ;; esac
done
if [ -z "$master" ] && [ -f /data/sentinel.conf ]; then
  master=$(awk '$1 == "sentinel" && $2 == "monitor" { print $4 }' /data/sentinel.conf)
fi
master=${master:-$FIRST}

# its logs of slow and large commands would keep prompts
set -- --dir /data --port 6379 --protected-mode no \
  --requirepass "$PASSWORD" --primaryauth "$PASSWORD" \
  --replica-announce-ip "$SELF" \
  --appendonly yes --appendfsync everysec --save "" \
  --slowlog-max-len 0 --commandlog-large-request-max-len 0 --commandlog-large-reply-max-len 0 \
  --maxmemory "${MAXMEMORY:-512mb}" --maxmemory-policy noeviction \
  --min-replicas-to-write "${MIN_REPLICAS:-1}" --min-replicas-max-lag 10
if [ "$master" != "$SELF" ]; then
  set -- "$@" --replicaof "$master" 6379
fi
exec valkey-server "$@"
