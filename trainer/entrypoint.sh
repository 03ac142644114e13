#!/bin/sh
# Runs the trainer as a user without rights, wherever that user can write everything in the mounts; else as root: a
# mount may belong to root, or hold what an image that runs as root left there. exec: signals reach the trainer itself.
if [ "$(id -u)" = 0 ]; then
  as_user="setpriv --reuid=trainer --regid=trainer --clear-groups"
  refused=
  for mount in "$CHECKPOINT_DIR" "$TFDS_DATA_DIR"; do
    if [ -d "$mount" ] && [ -n "$($as_user find "$mount" -maxdepth 2 ! -writable -print -quit 2>&1)" ]; then
      refused=$mount
    fi
  done
  if [ -z "$refused" ]; then
    export HOME=/home/trainer
    exec $as_user "$@"
  fi
  echo "running as root: the user 'trainer' cannot write everything in $refused" >&2
fi
exec "$@"
