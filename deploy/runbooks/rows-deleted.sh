#!/usr/bin/env bash
# rows-deleted: rows were deleted by accident. Put them back, and nothing else, while the application goes on.
#
# Run it on the node, as root or as the user of the database:
#   ./rows-deleted.sh /srv/shop/shop.db --deleted-at 2026-11-22T13:28:36Z --table orders --where "customer = 17" --table lines
#
#   --deleted-at TIME   when it happened, or a little earlier: rows are taken from the newest state before it
#   --table NAME        a table whose rows shall come back; again for more, parents before children
#   --where SQL         only such rows of the table named before it; an expression over its columns
#   --key A,B           columns by which rows of the table named before it are told apart [its primary key]
#   --no-triggers       triggers of the database do not fire for rows that come back (they do: full-text indexes live of them)
#   --config FILE       the agent's configuration [/etc/walhub/agent.yml]
#   --hub AGENT/NAME    read through hubctl, as an operator (WALHUB_HUB and its like), not with this node's certificate
#   --copy FILE         where the earlier state is restored, and left [a temporary file, deleted at the end]
#   --yes               do not ask
#   -h, --help          this
#
# What it does: the earlier state is restored into a copy and proven; rows of the copy whose key the live database does not have are
# inserted in one transaction, foreign keys checked at its end; rows that are there are never touched, also where they were changed
# since. Then the rows are compared, and the transaction is awaited at the hub. Run twice it inserts nothing the second time.
# When did it happen? `hubctl query AGENT/NAME --timestamp TIME "SELECT count(*) FROM orders"` asks earlier states.
# Exit codes: 0 all of them are there, 1 failed (nothing was changed, or it says so), 2 wrong usage.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$(realpath "$0")")/lib.sh"

database='' deleted_at='' hub='' copy='' triggers=on
tables=() wheres=() keys=()
last() { ((${#tables[@]} > 0)) || usage "$1 belongs to a --table before it"; }
while (($# > 0)); do
    case "$1" in
        --config | --deleted-at | --table | --where | --key | --hub | --copy) takes_value "$@" ;;&
        --config) config=$2; shift ;;
        --deleted-at) deleted_at=$2; shift ;;
        --table) tables+=("$2") wheres+=('true') keys+=(''); shift ;;
        --where) last "$1"; wheres[-1]=$2; shift ;;
        --key) last "$1"; keys[-1]=$2; shift ;;
        --hub) hub=$2; shift ;;
        --copy) copy=$2; shift ;;
        --no-triggers) triggers=off ;;
        --yes) yes=1 ;;
        -h | --help) help ;;
        -*) usage "unknown option $1" ;;
        *) [[ -z "$database" ]] || usage "one database at a time"; database=$1 ;;
    esac
    shift
done
[[ -n "$database" ]] || usage "say which database file"
[[ -n "$deleted_at" ]] || usage "--deleted-at says when it happened"
((${#tables[@]} > 0)) || usage "--table says which rows"
[[ -f "$database" ]] || die "there is no file $database"
[[ "$database" == */* ]] || database=./$database
began=$(now_ms)
need sqlite3 "rows are put back with it"
deleted_ms=$(to_ms "$deleted_at")

if [[ -z "$copy" ]]; then
    scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/rows-deleted.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    copy=$scratch/earlier.db
fi
point=(--timestamp "$(from_ms $((deleted_ms - 1)))" -o "$copy" --delta --json)
if [[ -n "$hub" ]]; then
    answer=$("$hubctl" restore "$hub" "${point[@]}") || die "no earlier state; nothing was changed"
else
    answer=$("$agent" restore "$database" "${point[@]}" --config "$config") || die "no earlier state; nothing was changed"
fi
at=$(field time "$answer")
say "the state of transaction $(field txid "$answer"), $at, checksum $(field verdict "$answer"), is in $copy"

live() { sqlite3 -batch -bail "$database"; }
attach="ATTACH $(quoted "$(uri "$copy" immutable=1)") AS earlier;"
count='' insert='' compare=''
for number in "${!tables[@]}"; do
    name=$(quoted "${tables[number]}") table=\"${tables[number]//\"/\"\"}\"
    where=${wheres[number]} key=$(quoted "${keys[number]// /}")
    columns="SELECT group_concat(printf('\"%w\"', name), ', ') FROM pragma_table_xinfo($name) WHERE hidden = 0"
    there=$(still "$copy" "$columns")
    [[ -n "$there" ]] || die "the copy has no table ${tables[number]}; nothing was changed"
    now=$(sqlite3 -batch "$database" "$columns")
    [[ "$there" == "$now" ]] ||
        die "the table ${tables[number]} had other columns then ($there) than now (${now:-none}); nothing was changed"
    alike="SELECT group_concat(printf('m.\"%w\" IS e.\"%w\"', name, name), ' AND ') FROM pragma_table_xinfo($name)"
    same=$(still "$copy" "$alike WHERE CASE $key WHEN '' THEN pk > 0 ELSE instr(',' || $key || ',', ',' || name || ',') END")
    equal=$(still "$copy" "$alike WHERE hidden = 0")
    if [[ -z "$same" ]]; then
        [[ -z "${keys[number]}" ]] || usage "the table ${tables[number]} has no column ${keys[number]}"
        # A table without a primary key: SQLite's own number of the row.
        same='m.rowid IS e.rowid' there="rowid, $there"
    fi
    all="FROM earlier.$table AS e WHERE ($where)"
    missing="$all AND NOT EXISTS (SELECT 1 FROM main.$table AS m WHERE $same)"
    count+="SELECT $name, count(*) $missing;"$'\n'
    insert+="INSERT INTO main.$table($there) SELECT $there $missing;"$'\n'
    compare+="SELECT $name, (SELECT count(*) $missing), (SELECT count(*) $all AND EXISTS"
    compare+=" (SELECT 1 FROM main.$table AS m WHERE $same AND NOT ($equal)));"$'\n'
done

found=$(live <<<"$attach"$'\n'"$count") || die "the rows could not be counted (above); nothing was changed"
while IFS='|' read -r table rows; do say "$table: $rows rows of the copy are not in the live database"; done <<<"$found"
if ! grep -qv '|0$' <<<"$found"; then
    say "nothing is missing: nothing to do"
    exit 0
fi
ask "Put these rows back into $database, which stays in use?"
if [[ -z "$hub" ]]; then
    undo=$("$agent" sync "$database" --wait buffered --timeout 30s --json --config "$config") ||
        die "what is there now is not safe at the hub, so this could not be undone; nothing was changed"
    say "to undo it all: $agent restore $database --txid $(field txid "$undo") --in-place"
fi
live >/dev/null <<END || die "the rows were not put back (above): nothing was changed"
.timeout 30000
.dbconfig enable_trigger $triggers
PRAGMA foreign_keys = ON;
$attach
BEGIN IMMEDIATE;
PRAGMA defer_foreign_keys = ON;
${insert}COMMIT;
END
served=$(now_ms)

checked=$(live <<<".timeout 30000"$'\n'"$attach"$'\n'"$compare")
left=0
while IFS='|' read -r table rows other; do
    ((rows == 0)) || { say "$table: $rows rows are missing still"; left=1; }
    ((other == 0)) || say "$table: $other rows were changed since then, and stay as they are"
done <<<"$checked"
((left == 0)) || die "somebody deletes them again? run this again when that has stopped"
say "all rows are there"
[[ -n "$hub" ]] || await_replication "$database"

printf 'RTO %s s: from the start of this script until the rows were back\n' "$(seconds $((served - began)))"
printf 'RPO %s s: at most; rows that were made between %s and %s\n' "$(seconds $((deleted_ms - $(to_ms "$at"))))" "$at" "$deleted_at"
