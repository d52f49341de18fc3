# One client of the application: a long-lived session, about twenty writes a second, and one line
# per row with the outcome that the client knows. Every fifth write is a transaction of three rows.
# The client uses psql, hence libpq, as Mastodon does.
#
# Lines on standard output, each prefixed with the pod's name; instants are seconds since 1970:
#   open AT                                      a session was opened
#   ack SEQUENCE SENT ANSWERED SERVER TIMELINE   the commit was confirmed by this server
#   no SEQUENCE SENT ANSWERED WHY                refused before anything could be committed
#   unknown SEQUENCE SENT ANSWERED WHY           the session ended between sending and the answer
#   read AT SERVER                               MODE=read_row: a row was read
#   unread AT WHY                                MODE=read_row: reading failed
#   gone AT WHY                                  a session ended, not by this client
#   end AT                                       the last line of this client
#
# SIGTERM ends the client once the pending answer has arrived, if that happens within the grace
# period: a pooler delays answers while it has no server. SIGUSR1 does the same, but the process
# stays, so that its log can be read.
set -u
export LC_ALL=C PGCONNECT_TIMEOUT=5 PGAPPNAME=$CLIENT PGSSLMODE=require
export PGHOST=$DB_HOST PGPORT=$DB_PORT PGDATABASE=$DB_NAME PGUSER=$DB_USER PGPASSWORD=$DB_PASS
# Longer than a pooler is paused during a cutover.
answer_seconds=60
mark='--answered--'
stop='' turn=0 first=0 sequence=0 sent='' session='' answer='' why=''
trap 'stop=leave answer_seconds=15' TERM
trap 'stop=stay' USR1
trap '' PIPE
mkfifo /tmp/to /tmp/from /tmp/never
# Nothing is ever written to it: reading with a timeout is a sleep without a process.
exec {never}<>/tmp/never

say() { printf '%s %s\n' "$HOSTNAME" "$*"; }

# Sends one line of SQL; succeeds if it was answered without an error. Sets `answer` to the last row
# and `why` to the error.
ask() {
  local line part='' last='' waited=0
  answer='' why=''
  printf '%s\n\\echo %s\n' "$1" "$mark" >&"$to" 2>/dev/null
  # One second at a time, because SIGTERM shortens a wait that has begun.
  while ((waited < answer_seconds)); do
    read -r -t 1 -u "$from" line
    case $? in
      0) line=$part$line part='' ;;
      1) break ;;
      *) part+=$line; ((++waited)); continue ;;
    esac
    case $line in
      "$mark")
        # FATAL ends a session, and psql notices only at the next line. The statement may have been
        # executed.
        case $why in *FATAL:* | *PANIC:*) close ;; esac
        [ -z "$why" ]; return ;;
      *ERROR:* | *FATAL:* | *PANIC:* | *error:*) why=${why:-$line} ;;
      WARNING:* | NOTICE:* | DETAIL:* | HINT:* | LOCATION:* | '') ;;
      *) answer=$line last=$line ;;
    esac
  done
  why=${why:-${last:-no answer}}
  close
  return 1
}

open() {
  psql --no-psqlrc --quiet --no-align --tuples-only --field-separator=' ' \
    --set=VERBOSITY=verbose </tmp/to >/tmp/from 2>&1 &
  session=$!
  exec {to}>/tmp/to {from}</tmp/from
  ask 'select 1;' || return
  say open "$EPOCHREALTIME"
  : >/tmp/ready
}

close() {
  [ -n "$session" ] || return
  exec {to}>&- {from}<&-
  kill -KILL "$session" 2>/dev/null
  wait "$session" 2>/dev/null
  session=''
}

leave() {
  close
  say end "$EPOCHREALTIME"
  while [ "$stop" = stay ]; do read -r -t 1 -u "$never"; done
  exit 0
}

# The row names the server: its own address, and the timeline of the WAL that the insert was written
# to.
insert() {
  local values="('%s', %d, '%s wrote %d')" timeline='pg_walfile_name(pg_current_wal_insert_lsn())'
  printf "insert into public.ledger (client, sequence, payload) values $values returning %s, %s;" \
    "$HOSTNAME" "$1" "$CLIENT" "$1" 'host(inet_server_addr())' "substr($timeline, 1, 8)"
}

# Logs the same outcome for each row of this turn.
say_rows() {
  local verdict=$1 each
  shift
  for ((each = first; each <= sequence; each++)); do say "$verdict" "$each" "$sent" "$@"; done
}

# Logs the outcome of this turn's rows after an answer or a failure. $1: `commits` if the last
# statement could commit them.
settle() {
  local at=$EPOCHREALTIME
  if [ -z "$why" ]; then say_rows ack "$at" "$answer"
  elif [ "$1" = commits ] && [ -z "$session" ]; then say_rows unknown "$at" "$why"
  else say_rows no "$at" "$why"
  fi
  [ -n "$session" ] || say gone "$at" "$why"
}

write() {
  local rows=1 each row
  ((++turn % 5 == 0)) && rows=3
  first=$((sequence + 1)) sequence=$((sequence + rows)) sent=$EPOCHREALTIME
  if [ -z "$session" ] && ! open; then say_rows no "$EPOCHREALTIME" "$why"; return; fi
  sent=$EPOCHREALTIME
  if ((rows == 1)); then ask "$(insert "$first")"; settle commits; return; fi
  ask 'begin;' || { settle does-not; return; }
  for ((each = first; each <= sequence; each++)); do
    if ! ask "$(insert "$each")"; then
      settle does-not
      [ -z "$session" ] || ask 'rollback;' || say gone "$EPOCHREALTIME" "$why"
      return
    fi
  done
  row=$answer
  sent=$EPOCHREALTIME
  ask 'commit;'
  answer=$row
  settle commits
}

read_row() {
  if [ -z "$session" ] && ! open; then say unread "$EPOCHREALTIME" "$why"; return; fi
  if ask 'select host(inet_server_addr()) from public.ledger limit 1;'; then
    say read "$EPOCHREALTIME" "$answer"
    return
  fi
  say unread "$EPOCHREALTIME" "$why"
  [ -n "$session" ] || say gone "$EPOCHREALTIME" "$why"
}

while [ -z "$stop" ]; do
  "${MODE:-write}"
  read -r -t 0.05 -u "$never"
done
leave
