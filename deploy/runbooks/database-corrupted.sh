#!/usr/bin/env bash
# database-corrupted: "database disk image is malformed". Go back to the newest sound state, and keep the evidence.
#
# Run it on the node, as root or as the user of the database:
#   ./database-corrupted.sh /srv/shop/shop.db --stop-app 'systemctl stop shop' --start-app 'systemctl start shop'
#
#   --config FILE       the agent's configuration [/etc/walhub/agent.yml]
#   --stop-app CMD, --start-app CMD      the application; without them you are asked to do it
#   --stop-agent CMD, --start-agent CMD  [systemctl stop walhub-agent, systemctl start walhub-agent]
#   --timestamp TIME    not the newest sound state, but the newest one at this time, if that is sound
#   --yes               do not ask
#   -h, --help          this
#
# What it does: application and agent are stopped; the state of the hub is made out of the file, page by page (only pages that
# differ travel), beside it, and checked with SQLite's integrity_check. Where the corruption was committed, and so replicated, it
# goes back in time to the last transaction before it: each step reads the whole file, so for a large one give --timestamp. The
# corrupted file is renamed to FILE.corrupted-TIME, its -wal and -shm with it, and nobody deletes them; the sound one takes the name,
# agent and application are started, and the history goes on: what was undone can still be restored.
#
# Many nodes at once, to a point that is known to be sound: `hubctl restore --selector ... --replace --check '...'`, applications stopped.
#
# Interrupted, run it again: the name holds the corrupted file or the sound one (or none for a moment), never a mix. A file that is sound is left as
# it is. Exit codes: 0 it is sound now, 1 failed (it says what), 2 wrong usage.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$(realpath "$0")")/lib.sh"

database='' asked=''
while (($# > 0)); do
    case "$1" in
        --config | --stop-app | --start-app | --stop-agent | --start-agent | --timestamp) takes_value "$@" ;;&
        --config) config=$2; shift ;;
        --stop-app) stop_app=$2; shift ;;
        --start-app) start_app=$2; shift ;;
        --stop-agent) stop_agent=$2; shift ;;
        --start-agent) start_agent=$2; shift ;;
        --timestamp) asked=$2; shift ;;
        --yes) yes=1 ;;
        -h | --help) help ;;
        -*) usage "unknown option $1" ;;
        *) [[ -z "$database" ]] || usage "one database at a time"; database=$1 ;;
    esac
    shift
done
[[ -n "$database" ]] || usage "say which database file"
[[ "$database" == */* ]] || database=./$database
[[ -d $(dirname "$database") ]] || die "there is no folder $(dirname "$database"); see server-lost.sh"
began=$(now_ms)
need "$agent"
need sqlite3 "files are checked with it"
[[ -z "$asked" ]] || asked_ms=$(to_ms "$asked")
aside=$database.corrupted-$(date -u +%Y%m%dT%H%M%S.%3NZ)
scratch=$database.restoring # there from an earlier run: that was interrupted

# SQLite's verdict in one line; $2 is how the file may be opened. A reader of its own: it changes nothing.
verdict() {
    local said
    said=$(sqlite3 -batch "$(uri "$1" "$2")" 'PRAGMA integrity_check(3)' 2>&1) || true
    printf '%s' "${said//$'\n'/; }" | cut -c 1-300
}

if [[ -e "$database" ]]; then
    mode=immutable=1
    # Somebody has it open, or it has a log: the file alone is not the database.
    [[ ! -e "$database-shm" && ! -s "$database-wal" ]] || mode=mode=ro
    found=$(verdict "$database" "$mode")
    say "$database: integrity_check: $found"
    [[ "$found" != *"unable to open"* ]] || die "that says nothing about the file: may this user open it?"
    if [[ "$found" == ok && -z "$asked" && ! -e "$scratch" ]]; then
        say "it is sound: nothing to do (--timestamp goes back all the same; for lost rows see rows-deleted.sh)"
        exit 0
    fi
else
    say "$database is gone: everything will be fetched"
fi
ask "Stop the application and the agent, and replace $database by ${asked:-the newest sound state}?"

if [[ -n "$stop_app" ]]; then run "the application stops" "$stop_app"; else ask "Is the application stopped?"; fi
# What the agent has seen committed shall be at the hub: it is what the restore begins with.
"$agent" sync "$database" --wait buffered --timeout 30s --config "$config" >&2 || say "not all of it is at the hub; going on"
run "the agent stops" "$stop_agent"
stopped=$(now_ms)
stopped_still() {
    # A second name of the file, for as long as nothing was made of it.
    [[ ! "$scratch" -ef "$database" ]] || rm -f "$scratch"
    say "the application and the agent are stopped still; start them, or run this again"
}
trap stopped_still EXIT
if [[ -e "$database" ]]; then
    busy=$(holders "$database")
    [[ -z "$busy" ]] || die "process ${busy//$'\n'/, } has $database open; stop it and run this again"
    # What is compared with the hub: read, never written, and replaced by what comes of it.
    ln -f "$database" "$scratch" || cp -p --reflink=auto "$database" "$scratch"
fi

# Makes the file beside it the newest state at a time (or the newest of all): 0 it is sound, 1 it is not, 2 there is none.
probe() {
    local point=() answer
    [[ -z "${1:-}" ]] || point=(--timestamp "$(from_ms "$1")")
    answer=$("$agent" restore "$database" -o "$scratch" --delta "${point[@]}" --json --config "$config") || return 2
    at_txid=$(field txid "$answer") at_ms=$(to_ms "$(field time "$answer")")
    found=$(verdict "$scratch" immutable=1)
    say "transaction $at_txid of $(from_ms "$at_ms"): $(field received_bytes "$answer") bytes came, integrity_check: $found"
    [[ "$found" == ok ]]
}
none() { die "$1; $database is unchanged"; }

result=0
probe "${asked:+$asked_ms}" || result=$?
((result != 2)) || none "that state was not restored (above)"
newest=$at_ms
if [[ -n "$asked" ]]; then
    ((result == 0)) || none "that state is not sound either; give an earlier --timestamp, or none"
    newest=$stopped
elif ((result == 1)); then
    say "the corruption was committed: looking for the last transaction before it"
    # The state at `bad` is not sound. At `low` there is the sound one of `good`, or none; the file beside is the one of `here`.
    bad=$at_ms step=1000 low=$((at_ms - 1000)) good='' here=''
    until result=0 && probe "$low" || { result=$?; ((result == 2)); }; do
        bad=$((at_ms < bad ? at_ms : bad)) step=$((step * 4)) low=$((bad - step))
    done
    ((result == 2)) || good=$low here=$low
    while ((bad - low > 1)); do
        middle=$((low + (bad - low) / 2)) result=0
        probe "$middle" || result=$?
        case $result in
            0) low=$middle good=$middle here=$middle ;;
            1) bad=$((at_ms > low ? at_ms : middle)) here='' ;;
            *) low=$middle ;;
        esac
    done
    [[ -n "$good" ]] || none "no sound state was found"
    [[ "$here" == "$good" ]] || probe "$good" || none "the state of $(from_ms "$good") was sound a moment ago"
fi

if [[ -e "$database" ]]; then
    chown --reference "$database" "$scratch"
    chmod --reference "$database" "$scratch"
    for suffix in -wal -shm ''; do
        [[ ! -e "$database$suffix" ]] || mv -T "$database$suffix" "$aside$suffix"
    done
    say "the corrupted file is kept: $aside"
fi
mv -T "$scratch" "$database"
sync "$(dirname "$database")"
say "$database is the state of transaction $at_txid, $(from_ms "$at_ms")"
run "the agent starts" "$start_agent"
if [[ -n "$start_app" ]]; then run "the application starts" "$start_app"; else say "start the application now"; fi
trap - EXIT
served=$(now_ms)
await_replication "$database"

printf 'RTO %s s: from the start of this script until the application was started; replicated again after %s s\n' \
    "$(seconds $((served - began)))" "$(seconds $(($(now_ms) - began)))"
to='the newest one that the hub had'
[[ -z "$asked" ]] || to='the stop of the application'
printf 'RPO %s s: from the transaction that came back to %s\n' "$(seconds $((newest - at_ms)))" "$to"
