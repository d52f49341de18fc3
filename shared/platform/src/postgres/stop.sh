# Stops a server, and ends what would keep it from ending. It runs in a session of its own, so that
# the signals that end the server's processes do not reach it.
#
# Arguments: the directory of PostgreSQL's programs, the data directory, the limit in seconds, and
# the process ids of the WAL senders to leave alone.
bin=$1 data=$2 limit=$3
shift 3
keep=" $* "
# One run of the server: a server that is started later has another process and another start time.
run() { sed -n '1p;3p' "$data/postmaster.pid" 2>/dev/null; }
before=$(run)
postmaster=${before%%[!0-9]*}
[ -n "$postmaster" ] || exit 0
"$bin/pg_ctl" stop -D "$data" -m fast -W
# From here on the server accepts no connection: a reader that is ended cannot come back.
end_readers() {
  for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    read -r _ _ _ parent _ <"$process/stat" || continue
    [ "$parent" = "$postmaster" ] || continue
    case $keep in *" $pid "*) continue ;; esac
    grep -q ': walsender ' "$process/cmdline" && kill -TERM "$pid"
  done 2>/dev/null
}
state() { LC_ALL=C "$bin/pg_controldata" "$data" | sed -n 's/^Database cluster state: *//p'; }
tick=0
while [ "$(run)" = "$before" ] && [ -d "/proc/$postmaster" ]; do
  end_readers
  seconds=$((tick / 5))
  # A server that has shut down and waits for its WAL archiver gets longer: its archive would lack
  # the last segments.
  if [ "$seconds" -ge $((4 * limit)) ] ||
    { [ "$seconds" -ge "$limit" ] && [ "$(state)" != 'shut down' ]; }; then
    kill -QUIT "$postmaster"
    exit
  fi
  sleep 0.2
  tick=$((tick + 1))
done
