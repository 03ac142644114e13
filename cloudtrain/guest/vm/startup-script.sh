#!/bin/bash
# Keeps the trainer running. Called by cron at every boot, and by hand at any time: it may run as often as it likes,
# because only one holds the lock, and the container is found by its name. The watcher calls it with the word `again`.
set -u
PATH="${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" # cron's own is /usr/bin:/bin
export PATH
here="${CLOUDTRAIN_ROOT:-}/cloudtrain"
log="$here/startup.log"

say() { printf '%s %s\n' "$(date -u '+%Y-%m-%d %H:%M:%S')" "$*"; }

cd "$here" || exit 1
if [ "$(stat -c %s "$log" 2>/dev/null || echo 0)" -gt 1048576 ]; then mv -f "$log" "$log.1"; fi
exec >>"$log" 2>&1 </dev/null

# Asked to start: a stop that was asked for earlier is over. The watcher only puts back what was there.
if [ "${1:-}" != again ]; then rm -f "$here/stopping"; fi

# Returns when the watcher runs, this one or one that was there before.
python3 -sSEB "$here/eviction_watch.py" || say "the eviction watcher did not start"

# The three seconds are for one that is just ending.
exec 9>>"$here/startup.lock"
if ! flock -w 3 9; then
  say "already running"
  exit 0
fi
exec python3 -sSEB "$here/run_trainer.py"
