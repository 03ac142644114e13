# Functions and first steps of the script that install_script() makes.
here="${CLOUDTRAIN_ROOT:-}/cloudtrain"

fail() {
  echo "$*"
  exit 1
}

# put_file NAME MODE SHA256 <base64 of gzip: appears whole or not at all
put_file() {
  local new="$here/.$1.new"
  if ! base64 -d | gzip -dc >"$new" || [ "$(sha256sum <"$new")" != "$3  -" ]; then
    fail "cannot write $here/$1: is the disk full?"
  fi
  if ! chmod "$2" "$new" || ! mv -f "$new" "$here/$1"; then fail "cannot write $here/$1"; fi
}

# One line of ours in root's crontab, every other line as it was
put_crontab_line() {
  local line kept errors
  line="@reboot $(printf '%q' "$here/startup-script.sh")"
  errors=$(crontab -l 2>&1 >/dev/null)
  case "$?:$errors" in
    0:*) kept=$(crontab -l) || fail "cannot read the crontab" ;;
    *"no crontab for"*) kept= ;;
    *) fail "cannot read the crontab: $errors" ;;
  esac
  if printf '%s\n' "$kept" | grep -qxF -- "$line"; then return; fi
  if [ -n "$kept" ]; then kept+=$'\n'; fi
  printf '%s\n' "$kept$line" | crontab - || fail "cannot write the crontab"
}

# The right to pull a private image: a file that only root reads, and nothing that a program started below inherits
put_pull_login() {
  local login="${CLOUDTRAIN_PULL_LOGIN:-}"
  unset CLOUDTRAIN_PULL_LOGIN
  if [ -z "$login" ]; then return; fi
  (umask 077 && mkdir -p "$here/docker" && printf '%s' "$login" | base64 -d >"$here/docker/.config.json.new" &&
    mv -f "$here/docker/.config.json.new" "$here/docker/config.json") || fail "cannot write $here/docker/config.json"
}

# put_protected FILE VARIABLE: a secret that came as a protected parameter, into a file that only root reads
put_protected() {
  local content="${!2:-}"
  unset "$2"
  if [ -z "$content" ]; then return; fi
  (umask 077 && printf '%s' "$content" | base64 -d >"$here/.$1.new" && mv -f "$here/.$1.new" "$here/$1") ||
    fail "cannot write $here/$1"
}

# In a unit of its own where systemd runs, because a restart of Azure's agent ends everything that belongs to it
start_training() {
  exec 8>&-
  rm -f "$here/failed"
  local name told=()
  for name in CLOUDTRAIN_IMDS CLOUDTRAIN_BLOBS CLOUDTRAIN_ARM; do
    if [ -n "${!name:-}" ]; then told+=("--setenv=$name=${!name}"); fi
  done
  if [ -z "${CLOUDTRAIN_ROOT:-}" ] && [ -d /run/systemd/system ] &&
    systemd-run --quiet --collect --property=KillMode=process \
      ${told[@]+"${told[@]}"} "$here/startup-script.sh" >/dev/null 2>&1; then
    return
  fi
  setsid nohup "$here/startup-script.sh" </dev/null >/dev/null 2>&1 &
}

for tool in crontab flock python3 base64 gzip sha256sum; do
  command -v "$tool" >/dev/null || fail "this VM image has no $tool"
done
mkdir -p "$here/models" "$here/data" "$here/on-evict.d" || fail "cannot make $here"
# A trainer image may run as any user
chmod 0777 "$here/models" "$here/data"
if [ ! -e "$here/models/log.txt" ]; then
  if ! : >"$here/models/log.txt"; then fail "cannot write $here/models/log.txt"; fi
  chmod 0666 "$here/models/log.txt"
fi
exec 8>>"$here/install.lock"
flock -w 60 8 || fail "another installation is under way"
put_pull_login
put_protected storage.json CLOUDTRAIN_STORAGE
put_protected secrets.json CLOUDTRAIN_SECRETS
