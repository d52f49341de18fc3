# One client of the application: a session that lives long, about twenty writes a second, and a line
# for every row that says what the client knows of it. Every fifth write is a transaction of three
# rows. It speaks through psql, that is libpq, as Mastodon does.
#
# Lines on standard output, each begun with the pod's name; instants in seconds since 1970:
#   open AT                                      a session is there
#   ack SEQUENCE SENT ANSWERED SERVER TIMELINE   the commit was confirmed, by this server
#   no SEQUENCE SENT ANSWERED WHY                refused before anything could be committed
#   unknown SEQUENCE SENT ANSWERED WHY           the session ended between sending and the answer
#   read AT SERVER                               ACT=look: a row was read
#   unread AT WHY                                ACT=look: it was not
#   gone AT WHY                                  a session has ended, and not by this client
#   end AT                                       it does no more: everything that it knows is said
#
# SIGTERM ends it after the answer that it waits for, if that comes before the pod's grace is over:
# a pooler holds an answer back for as long as it has no server. SIGUSR1 does the same, and it stays
# to be asked for its log.
set -u
export LC_ALL=C PGCONNECT_TIMEOUT=5 PGAPPNAME=$CLIENT PGSSLMODE=require
export PGHOST=$DB_HOST PGPORT=$DB_PORT PGDATABASE=$DB_NAME PGUSER=$DB_USER PGPASSWORD=$DB_PASS
# Longer than any pause of a pooler in a cut.
answer_seconds=60
mark='--answered--'
stop='' turn=0 first=0 sequence=0 sent='' session='' answer='' why=''
trap 'stop=leave answer_seconds=15' TERM
trap 'stop=stay' USR1
trap '' PIPE
mkfifo /tmp/to /tmp/from /tmp/never
# Nothing ever comes out of it: waiting for that is a sleep that takes no process.
exec {never}<>/tmp/never

say() { printf '%s %s\n' "$HOSTNAME" "$*"; }

# Sends a line of SQL; true when it was answered without an error. `answer` is the last row, `why`
# what was wrong.
ask() {
  local line part='' last='' waited=0
  answer='' why=''
  printf '%s\n\\echo %s\n' "$1" "$mark" >&"$to" 2>/dev/null
  # By the second: SIGTERM shortens a wait that has begun.
  while ((waited < answer_seconds)); do
    read -r -t 1 -u "$from" line
    case $? in
      0) line=$part$line part='' ;;
      1) break ;;
      *) part+=$line; ((++waited)); continue ;;
    esac
    case $line in
      "$mark")
        # FATAL is the server's last word on a session, and psql notices only at the next line. What
        # it was doing may be done.
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
  psql --no-psqlrc --quiet --no-align --tuples-only --field-separator=' ' --set=VERBOSITY=verbose </tmp/to >/tmp/from 2>&1 &
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

# The row tells who took it: the server's own address, and the timeline of the WAL that it went
# into.
insert() {
  printf "insert into public.ledger (client, sequence, payload) values ('%s', %d, '%s wrote %d') returning %s, %s;" \
    "$HOSTNAME" "$1" "$CLIENT" "$1" 'host(inet_server_addr())' 'substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)'
}

# Says the same of each row of this turn.
say_rows() {
  local verdict=$1 each
  shift
  for ((each = first; each <= sequence; each++)); do say "$verdict" "$each" "$sent" "$@"; done
}

# What is known of this turn's rows after an answer, or none. $1: whether what was sent last could
# commit them.
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

look() {
  if [ -z "$session" ] && ! open; then say unread "$EPOCHREALTIME" "$why"; return; fi
  if ask 'select host(inet_server_addr()) from public.ledger limit 1;'; then say read "$EPOCHREALTIME" "$answer"; return; fi
  say unread "$EPOCHREALTIME" "$why"
  [ -n "$session" ] || say gone "$EPOCHREALTIME" "$why"
}

while [ -z "$stop" ]; do
  "${ACT:-write}"
  read -r -t 0.05 -u "$never"
done
leave
