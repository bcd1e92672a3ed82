//! Every metric of the hub: its name, kind, unit, labels and help, each once.
//!
//! What a page costs is bounded by what is configured and by the agents: labels are destinations, agents and fixed words.
//! The one exception is [`DRILL_FAILING`], of which there are at most [`MOST_FAILING`].
//! Counters begin with the hub, unless their help says otherwise.

/// Copies whose drill failed that are named one by one; [`DRILL_COPIES_FAILING`] counts all of them.
pub(super) const MOST_FAILING: usize = 100;

/// How a value moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Up and down.
    Gauge,
    /// Up, and to 0 when the hub begins anew.
    Counter,
    /// Always 1: its labels say it.
    Info,
}

/// What a value counts; the name ends with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Unit {
    /// Things that the name says.
    None,
    /// Seconds; times are Unix time.
    Seconds,
    /// Bytes.
    Bytes,
}

/// One metric.
#[derive(Debug)]
pub(super) struct Family {
    /// Without unit and `_total`.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) unit: Unit,
    /// Names of its labels, in order.
    pub(super) labels: &'static [&'static str],
    /// One sentence.
    pub(super) help: &'static str,
}

macro_rules! families {
    ($($family:ident: $kind:ident $unit:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub(super) static $family: Family = Family {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                labels: &[$($label),*],
                help: $help,
            };
        )*

        /// All of them, in the order of the page.
        pub(super) static ALL: &[&Family] = &[$(&$family),*];
    };
}

families! {
    // -- the process --
    BUILD: Info None "walhub_build" ["version"] "The version of the hub.";
    START: Gauge Seconds "walhub_start_time" [] "When the hub began.";

    // -- databases and agents --
    DATABASES: Gauge None "walhub_databases" [] "Databases that the hub knows.";
    DATABASES_OPEN: Gauge None "walhub_databases_open" [] "Databases that a connected agent follows right now.";
    DATABASES_REFUSED: Gauge None "walhub_databases_refused" []
        "Databases of which the hub refused something since their agent opened them; hubctl databases list says why.";
    DATABASES_NOT_DURABLE: Gauge None "walhub_databases_not_durable" []
        "Databases whose newest transaction does not satisfy their policy (yet).";
    AGENTS: Gauge None "walhub_agents" [] "Agents that the hub knows.";
    AGENTS_CONNECTED: Gauge None "walhub_agents_connected" [] "Agents that are connected.";
    AGENT_CONNECTED: Gauge None "walhub_agent_connected" ["agent"] "1 while the agent is connected.";
    AGENT_LAST_SEEN: Gauge Seconds "walhub_agent_last_seen_timestamp" ["agent"]
        "When the agent said something last; absent when it did not since the hub began.";
    AGENT_DATABASES: Gauge None "walhub_agent_databases" ["agent"] "Databases of the agent.";

    // -- the buffer --
    BUFFER_USED: Gauge Bytes "walhub_buffer_used" [] "The buffer on disk; what destinations have stays in it until four fifths of the limit are used.";
    BUFFER_LIMIT: Gauge Bytes "walhub_buffer_limit" [] "The bound of the buffer; the last eighth is kept for making room.";
    BUFFER_FULL: Gauge None "walhub_buffer_full" [] "1 when what came last found no room: agents are held back.";
    BUFFER_REFUSED: Counter None "walhub_buffer_refused" [] "Pieces of transactions that found no room; agents send them again.";
    BUFFER_SEGMENTS: Counter None "walhub_buffer_segments" [] "Segments that were buffered.";
    BUFFER_SEGMENT_BYTES: Counter Bytes "walhub_buffer_segment" [] "Bytes of segments that were buffered.";
    BUFFER_SYNCS: Counter None "walhub_buffer_syncs" [] "Syncs of the buffer to disk.";
    BUFFER_SQUASHED: Counter None "walhub_buffer_squashed_segments" [] "Segments that were merged to make room.";
    GIVEN_UP: Counter None "walhub_buffer_given_up_restore_points" []
        "Restore points that nobody holds any more because the buffer was full; no data is lost.";

    // -- destinations --
    DESTINATION_UP: Gauge None "walhub_destination_up" ["destination"] "1 when the last operation there succeeded; 0 while its circuit is open.";
    DESTINATION_DOWN: Gauge None "walhub_destination_down" ["destination", "cause"]
        "1 with the cause, in a word, while the destination does not work; hubctl status has the whole sentence.";
    DESTINATION_FAILURES: Counter None "walhub_destination_failures" ["destination", "cause"]
        "Attempts that failed, of the destination or of one database there.";
    DESTINATION_DATABASES: Gauge None "walhub_destination_databases" ["destination"] "Databases that the destination serves.";
    DESTINATION_BEHIND: Gauge None "walhub_destination_databases_behind" ["destination"] "Databases of which the destination lacks something.";
    DESTINATION_STUCK: Gauge None "walhub_destination_databases_stuck" ["destination"]
        "Databases that do not get on there while others do; hubctl databases list says why.";
    DESTINATION_LAG: Gauge Seconds "walhub_destination_lag" ["destination"] "Age of the oldest transaction that the destination lacks; 0 when it lacks none.";
    DESTINATION_LAG_P99: Gauge Seconds "walhub_destination_lag_p99" ["destination"]
        "The same of one database: 99 of 100 lag no more than this.";
    DESTINATION_PUTS: Counter None "walhub_destination_put_files" ["destination"] "Files, or packs, of new transactions that were put.";
    DESTINATION_PUT_BYTES: Counter Bytes "walhub_destination_put" ["destination"] "Bytes of those.";
    DESTINATION_REQUESTS: Counter None "walhub_destination_requests" ["destination", "operation"] "Requests of every kind of work.";
    DESTINATION_TODAY: Gauge None "walhub_destination_requests_today" ["destination"] "Requests since midnight UTC, of earlier runs of the hub as well.";
    DESTINATION_BUDGET: Gauge None "walhub_destination_requests_budget" ["destination"]
        "Requests of a day that the destination may get (max-requests-per-day); absent when there is no bound.";
    DESTINATION_SPENT: Gauge None "walhub_destination_budget_spent" ["destination"] "1 when the requests of today are spent: nothing is sent until midnight UTC.";
    DESTINATION_MIRROR: Gauge Seconds "walhub_destination_mirror_timestamp" ["destination"]
        "When the newest mirror of the hub there was made; absent when there is none.";
    RETENTION_LAST: Gauge Seconds "walhub_retention_last_success_timestamp" ["destination"]
        "When the last round of retention without a failure ended; absent before the first.";
    RETENTION_FAILURES: Counter None "walhub_retention_failures" ["destination"] "Databases that a round of retention could not deal with.";
    RETENTION_DELETED: Counter None "walhub_retention_deleted_files" ["destination"] "Files that the policy no longer keeps, deleted.";

    // -- compaction --
    COMPACTION_FILES: Counter None "walhub_compaction_files" [] "Compacted files that were made, without snapshots.";
    COMPACTION_SNAPSHOTS: Counter None "walhub_compaction_snapshots" [] "Snapshots that were made.";
    COMPACTION_BYTES: Counter Bytes "walhub_compaction_made" [] "Bytes of both.";
    COMPACTION_PUTS: Counter None "walhub_compaction_put_files" [] "Both, put to destinations, counted for each.";
    COMPACTION_FAILURES: Counter None "walhub_compaction_failures" [] "Attempts to make or put such a file that failed.";
    COMPACTION_FAILING: Gauge None "walhub_compaction_failing" [] "1 when the newest failure has not been made good since; hubctl status says what it was.";
    COMPACTION_LAST: Gauge Seconds "walhub_compaction_last_success_timestamp" [] "When the newest such file was made; absent before the first.";
    COMPACTION_WAITING: Gauge None "walhub_compaction_waiting_files" [] "Files that wait for a destination, counted for each.";
    COMPACTION_WAITING_BYTES: Gauge Bytes "walhub_compaction_waiting" [] "Bytes of files on the hub's disk that wait for a destination.";

    // -- drills and repairs --
    DRILLS: Counter None "walhub_drills" ["destination", "verdict"] "Drills that ended, by verdict: passed, repaired, failed, undone.";
    DRILL_SECONDS: Counter Seconds "walhub_drill_duration" ["destination"] "Time that drills took.";
    DRILL_BYTES: Counter Bytes "walhub_drill_read" ["destination"] "Bytes that drills read.";
    REPAIRS: Counter None "walhub_repaired_objects" ["destination"] "Damaged or missing objects that were made anew.";
    DRILL_LAST: Gauge Seconds "walhub_drill_last_timestamp" ["destination"] "When the newest drill began, also before a restart; absent before the first.";
    DRILL_LAST_SUCCESS: Gauge Seconds "walhub_drill_last_success_timestamp" ["destination"]
        "When the newest drill that passed, or passed after a repair, began; absent before the first.";
    DRILL_COPIES: Gauge None "walhub_drill_copies" ["destination"] "Copies that were tried at least once.";
    DRILL_COPIES_FAILING: Gauge None "walhub_drill_copies_failing" ["destination"] "Copies whose last drill failed.";
    DRILL_FAILING: Gauge None "walhub_drill_failing" ["agent", "database", "destination"]
        "1 for each copy whose last drill failed, until one passes; 100 at most, walhub_drill_copies_failing counts all.";
    DRILL_INTERVAL: Gauge Seconds "walhub_drill_interval" [] "Mean time between two drills of the schedule; absent without one.";

    // -- restores on nodes --
    JOBS: Gauge None "walhub_jobs" ["state"] "Jobs of restores on nodes that the hub remembers.";
    JOB_DATABASES: Gauge None "walhub_job_databases" ["state"] "Databases of jobs that are not at their end.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_of_one_form_and_each_once() {
        let mut seen = BTreeSet::new();
        for family in ALL {
            let Family { name, help, labels, .. } = family;
            assert!(seen.insert(format!("{name} {:?}", family.unit)), "{name} is there twice");
            assert!(name.starts_with("walhub_"), "{name}");
            let fine =
                |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit());
            assert!(fine(name) && labels.iter().all(|label| fine(label)), "{name}");
            assert!(
                !["_total", "_seconds", "_bytes", "_info"].iter().any(|end| name.ends_with(end)),
                "{name}"
            );
            assert!(help.ends_with('.') && !help.contains(['\n', '\\']), "{name}: {help}");
        }
    }
}
