# What the runbooks share: talk, questions, services, SQLite, times. Sourced by them, of no use by itself.
# Needs bash, GNU date and find, and the sqlite3 shell (SQLite 3.37 or newer).
# shellcheck shell=bash disable=SC2034

config=/etc/walhub/agent.yml
agent=${WALHUB_AGENT:-walhub-agent}
hubctl=${WALHUB_HUBCTL:-hubctl}
start_agent='systemctl start walhub-agent' stop_agent='systemctl stop walhub-agent'
start_app='' stop_app='' yes=0
patience=120

say() { printf '%s  %s\n' "$(date -u +%T)" "$*" >&2; }
die() { say "FAILED: $*"; exit 1; }
usage() { printf '%s: %s (see --help)\n' "${0##*/}" "$*" >&2; exit 2; }
# The comment at the head of the script.
help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0; }
# For the rest of the command line, which begins with an option that takes a value.
takes_value() { (($# >= 2)) || usage "$1 needs a value"; }

# Goes on only after a "y", or with --yes.
ask() {
    local answer
    ((yes)) && return
    [[ -t 0 ]] || { say "$1"; die "nothing was changed: nobody is there to answer; look at the above, then add --yes"; }
    read -r -p "$1 [y/N] " answer
    [[ "$answer" == [yY]* ]] || die "nothing was changed"
}

need() { command -v "$1" >/dev/null || die "$1 is not installed${2:+: $2}"; }

# --- times: milliseconds since 1970 ---

now_ms() { date +%s%3N; }
# The time that a person or the hub wrote.
to_ms() { date -u -d "$1" +%s%3N 2>/dev/null || die "\"$1\" is no time; write 2026-11-22T13:28:36Z"; }
from_ms() { date -u -d "@$(($1 / 1000)).$(printf %03d $(($1 % 1000)))" +%FT%T.%3NZ; }
seconds() { printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)); }

# The first field of that name in JSON as our programs print it.
field() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\"]*\)\"\{0,1\}$/\1/p" <<<"${2//,$'\n'/$'\n'}" | head -n 1; }

# --- services ---

run() { say "$1: $2"; bash -c "$2" || die "$1 failed: $2"; }

# Waits until everything committed in the databases is at the hub again.
await_replication() {
    local database until=$(($(now_ms) + patience * 1000)) said
    for database in "$@"; do
        until said=$("$agent" sync "$database" --wait buffered --timeout 10s --config "$config" 2>&1); do
            (($(now_ms) < until)) || die "replication of $database has not resumed within $patience s: $said"
            sleep 0.2
        done
        say "$said"
    done
}

# Processes that have the database open, one id per line.
holders() {
    local real
    real=$(realpath "$1" | sed 's/[][*?\\]/\\&/g')
    find /proc/[0-9]*/fd -maxdepth 1 -lname "$real" 2>/dev/null | cut -d/ -f3 | sort -u || true
}

# --- SQLite ---

# A database as a URI; $2 are its parameters.
uri() { printf 'file:%s?%s' "$(realpath "$1" | sed 's/%/%25/g; s/?/%3f/g; s/#/%23/g')" "$2"; }
# For a file that nobody has open and that has no log: nothing appears beside it.
still() { sqlite3 -batch "$(uri "$1" immutable=1)" "$2"; }
quoted() { printf "'%s'" "${1//\'/\'\'}"; }
