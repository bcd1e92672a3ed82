#!/usr/bin/env bash
# server-lost: the node is gone, with its disk. Bring its databases back on a new machine.
#
# Run it on the new machine, as root or as the user of the databases, after these four:
#   1. The old server is off and stays off: two nodes of one name are two histories.
#   2. walhub is installed, and the node's configuration lies where it was (/etc/walhub/agent.yml).
#   3. A new certificate of the same name, where the authority lies, copied to where the configuration says:
#        hubctl cert issue --dir pki --agent NAME
#   4. The application is installed and not started.
# Then: ./server-lost.sh
#
#   --config FILE       the agent's configuration [/etc/walhub/agent.yml]
#   --timestamp TIME    not the newest state, but the one at this time
#   --lost-at TIME      when the server was lost; the RPO is counted to there
#   --owner USER:GROUP  whom the restored files shall belong to
#   --start-agent CMD   [systemctl start walhub-agent]
#   --start-app CMD     such as 'systemctl start shop'
#   --yes               do not ask
#   -h, --help          this
#
# It overwrites nothing: a database that is there is left as it is, so that it may be run again after whatever stopped it. Each
# file appears under its name when it is whole and its checksum is the one taken at the lost server. Exit codes: 0 the agent
# follows all of them again, 1 failed (it says what), 2 wrong usage, 64 bad configuration.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$(realpath "$0")")/lib.sh"

point=() lost_at='' owner=''
while (($# > 0)); do
    case "$1" in
        --config | --timestamp | --lost-at | --owner | --start-agent | --start-app) takes_value "$@" ;;&
        --config) config=$2; shift ;;
        --timestamp) point=(--timestamp "$2"); shift ;;
        --lost-at) lost_at=$2; shift ;;
        --owner) owner=$2; shift ;;
        --start-agent) start_agent=$2; shift ;;
        --start-app) start_app=$2; shift ;;
        --yes) yes=1 ;;
        -h | --help) help ;;
        *) usage "unknown option $1" ;;
    esac
    shift
done
began=$(now_ms)
need "$agent"
need sqlite3 "restored files are checked with it"
if [[ -n "$lost_at" ]]; then lost_ms=$(to_ms "$lost_at"); else lost_ms=$began; fi

say "the configuration $config"
"$agent" check-config --config "$config" >&2 || {
    code=$?
    say "FAILED: mend the above; where a certificate is missing: hubctl cert issue --dir pki --agent NAME, where the authority lies"
    exit "$code"
}
ask "Is the old server off for good? Restore here all that the hub has of this node, where there is no such file?"

followed=() newest_loss=0
# What came of one database, as JSON.
one() {
    local database file folder sound loss left_out
    database=$(field database "$1") file=$(field output "$1") left_out=$(field left_out "$1")
    if [[ -n "$left_out" ]]; then
        say "ATTENTION: $left_out"
    elif [[ -n "$(field skipped "$1")" ]]; then
        say "$database: nothing to do: $(field skipped "$1")"
        [[ ! -e "$file" ]] || followed+=("$database")
    elif [[ -z "$(field error "$1")" ]]; then
        if [[ -n "$owner" ]]; then
            folder=$(dirname "$file")
            # A folder that was made for this file: the application must write its -wal there.
            (($(find "$folder" -mindepth 1 -maxdepth 1 | wc -l) > 1)) || chown "$owner" "$folder"
            chown "$owner" "$file"
        fi
        say "$database: $file, transaction $(field txid "$1") of $(field time "$1"), checksum $(field verdict "$1")"
        sound=$(still "$file" 'PRAGMA quick_check(1)') || sound="cannot be read"
        [[ "$sound" == ok ]] || say "ATTENTION: that is what the lost server had, and it is not sound: $sound; see database-corrupted.sh"
        loss=$((lost_ms - $(to_ms "$(field time "$1")")))
        ((loss >= 0)) || loss=0
        ((loss <= newest_loss)) || newest_loss=$loss
        say "$database: at most what was committed in the last $(seconds "$loss") s is missing (nothing, if it was idle)"
        followed+=("$database")
    fi
}
failed=0
answer=$("$agent" restore --all "${point[@]}" --if-db-not-exists --json --config "$config") || failed=1
object=''
while IFS= read -r line; do
    case "$line" in
        '  {') object='' ;;
        '  }' | '  },') one "$object" ;;
        *) object+=$line$'\n' ;;
    esac
done <<<"$answer"
((failed == 0)) || die "not all of it came back (above); what came stays; mend that and run this again"

run "the agent starts" "$start_agent"
[[ -z "$start_app" ]] || run "the application starts" "$start_app"
served=$(now_ms)
((${#followed[@]} == 0)) || await_replication "${followed[@]}"
followed_again=$(now_ms)

if [[ -z "$start_app" ]]; then say "start the application now"; fi
to='the loss'
[[ -n "$lost_at" ]] || to='the start of this script (--lost-at says when the server was lost)'
until='the databases were there and the agent was started'
[[ -z "$start_app" ]] || until='the application was started'
printf 'RTO %s s: from the start of this script until %s; replicated again after %s s\n' "$(seconds $((served - began)))" \
    "$until" "$(seconds $((followed_again - began)))"
printf 'RPO %s s: at most, of the database that was idle for longest; from its newest transaction to %s\n' "$(seconds "$newest_loss")" "$to"
