//! What a run has done, counted while it runs.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sessions: AtomicU64,
    pub(crate) compares: AtomicU64,
    pub(crate) txids: AtomicU64,
    pub(crate) pages: AtomicU64,
    pub(crate) app_commits: AtomicU64,
    pub(crate) writer_deaths: AtomicU64,
    pub(crate) plain_kills: AtomicU64,
    pub(crate) spilled_kills: AtomicU64,
    pub(crate) commit_kills: AtomicU64,
    pub(crate) torn_headers: AtomicU64,
    pub(crate) sync_errors: AtomicU64,
    pub(crate) agent_kills: AtomicU64,
    pub(crate) agent_freezes: AtomicU64,
    pub(crate) disks_full: AtomicU64,
    /// Writes that met a full disk.
    pub(crate) writes_refused: AtomicU64,
    /// Pauses that the agent agreed to.
    pub(crate) pauses: AtomicU64,
    /// Truncations of the log that the agent managed.
    pub(crate) shrinks: AtomicU64,
    pub(crate) phantoms: AtomicU64,
    pub(crate) differences: AtomicU64,
}

impl Tally {
    pub(crate) fn add(&self, counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// A writer is about to die or fail.
    pub(crate) fn fault(&self, name: &str) {
        let counter = match name {
            "commit-kill" => &self.commit_kills,
            "torn-header" => &self.torn_headers,
            "sync-error" => &self.sync_errors,
            "spilled-kill" => &self.spilled_kills,
            other => panic!("a writer names an unknown fault: {other}"),
        };
        self.add(counter, 1);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = Tally::get;
        writeln!(
            f,
            "sessions {}, compares {}, TXIDs checked {} ({} pages), app commits {}",
            n(&self.sessions),
            n(&self.compares),
            n(&self.txids),
            n(&self.pages),
            n(&self.app_commits)
        )?;
        writeln!(
            f,
            "writers: deaths {} (plain kills {}, with spilled pages {}, inside the sync of a commit {}, torn headers {}), \
             fsync errors {}",
            n(&self.writer_deaths),
            n(&self.plain_kills),
            n(&self.spilled_kills),
            n(&self.commit_kills),
            n(&self.torn_headers),
            n(&self.sync_errors)
        )?;
        writeln!(
            f,
            "agent: kills {}, freezes {}, full disks {} ({} writes refused), pauses {}, truncations {}",
            n(&self.agent_kills),
            n(&self.agent_freezes),
            n(&self.disks_full),
            n(&self.writes_refused),
            n(&self.pauses),
            n(&self.shrinks)
        )?;
        write!(f, "phantoms {}, differences {}", n(&self.phantoms), n(&self.differences))
    }
}
