#!/bin/sh
# A Sentinel keeps what it learns in its own file, so the file is made once and then left alone.
set -eu

if [ ! -f /data/sentinel.conf ]; then
  # it does not start while it cannot find the master's name
  tries=0
  until timeout 2 valkey-cli -h "$FIRST" -p 6379 ping >/dev/null 2>&1 || [ "$tries" -ge 60 ]; do
    tries=$((tries + 1))
    sleep 1
  done
  umask 077
  cat >/data/sentinel.conf.new <<CONF
port 26379
dir /data
protected-mode no
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $SELF
sentinel monitor ainfera $FIRST 6379 2
sentinel auth-pass ainfera $PASSWORD
sentinel down-after-milliseconds ainfera 5000
sentinel failover-timeout ainfera 30000
sentinel parallel-syncs ainfera 1
CONF
  mv /data/sentinel.conf.new /data/sentinel.conf
fi

exec valkey-server /data/sentinel.conf --sentinel
