#!/bin/sh
# reboot, poweroff, halt and shutdown of a node: they ask process 1, as systemd's do.
signal=RTMIN+4
case "${0##*/} $*" in
  reboot*|shutdown*-r*) signal=RTMIN+5 ;;
  shutdown*-c*) exit 0 ;;
esac
exec kill -s "$signal" 1
