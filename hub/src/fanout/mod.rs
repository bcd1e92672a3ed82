//! Carries what is buffered to every destination, each at its own pace.
//!
//! # Invariants
//! - One lane per destination, with its own task, queue, retries and circuit: lanes share nothing that one could hold up
//!   for another.
//! - Per database and destination, files are put in TXID order, one at a time; a file is put again with the very same
//!   name and bytes until its outcome is known. So no destination ever shows a hole.
//! - What a destination says it holds wins over our own record: the first time a lane touches a database after a start,
//!   it lists the files there and goes on behind the contiguous ones.
//! - Nothing is overwritten, and nothing is appended to files of another history: that database stops at that
//!   destination, loudly, and everything else goes on.
//! - An idle lane does nothing: it wakes when something was buffered.
//!
//! Non-goals: no compaction, no retention, no packing of several databases into one object.

mod build;
mod catchup;
mod coverage;
mod error;
mod lane;
mod turn;

use crate::buffer::WalBuffer;
use crate::copies::Board;
use lane::Lane;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::DestinationName;
use walhub_common::task::TaskGroup;
use walhub_store::destinations::DynDestination;

/// At most one round of giving space back in this time.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);
/// After the deadline of a shutdown, puts are cancelled and get this long.
const ABORT_GRACE: Duration = Duration::from_secs(2);

/// A destination and how often it is served.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// Where to.
    pub destination: DynDestination,
    /// Least time between two flushes of new transactions.
    pub sync_interval: Duration,
}

/// What all lanes use; nothing in it is held across a wait.
struct Shared {
    buffer: Arc<dyn WalBuffer>,
    board: Arc<Board>,
    destinations: Vec<DynDestination>,
    tmp: PathBuf,
    /// Ends calls to destinations; cancelled only when the deadline of a shutdown has passed.
    abort: CancellationToken,
}

/// The running lanes.
pub struct Fanout {
    tasks: TaskGroup,
    abort: CancellationToken,
}

impl Fanout {
    /// Starts a lane for each of `lanes`, which are in the order of the board's. Large files in the making lie in `tmp`,
    /// which is emptied first.
    pub fn start(
        buffer: Arc<dyn WalBuffer>,
        board: Arc<Board>,
        lanes: Vec<LaneConfig>,
        tmp: &Path,
    ) -> io::Result<Fanout> {
        empty_dir(tmp)?;
        let tasks = TaskGroup::new("fanout");
        let abort = CancellationToken::new();
        let shared = Arc::new(Shared {
            buffer: buffer.clone(),
            board: board.clone(),
            destinations: lanes.iter().map(|lane| lane.destination.clone()).collect(),
            tmp: tmp.to_path_buf(),
            abort: abort.clone(),
        });
        for (index, config) in lanes.iter().enumerate() {
            let lane = Lane::new(shared.clone(), index, config.sync_interval, tasks.token().clone());
            tasks.spawn(lane.run());
        }
        let names = lanes.iter().map(|lane| lane.destination.name().clone()).collect();
        tasks.spawn(housekeeping(buffer, board, names, tasks.token().clone()));
        Ok(Fanout { tasks, abort })
    }

    /// Starts no new put and waits for the current ones, at most `deadline`; then they are cancelled.
    pub async fn shutdown(&self, deadline: Duration) {
        if !self.tasks.shutdown(deadline).await {
            self.abort.cancel();
            self.tasks.shutdown(ABORT_GRACE).await;
        }
    }
}

fn empty_dir(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for entry in std::fs::read_dir(dir)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// Gives buffer space back when destinations have advanced.
async fn housekeeping(
    buffer: Arc<dyn WalBuffer>,
    board: Arc<Board>,
    lanes: Vec<DestinationName>,
    stop: CancellationToken,
) {
    loop {
        if let Err(error) = buffer.trim(&lanes).await {
            tracing::warn!(%error, "cannot give buffer space back");
        }
        let round = async {
            tokio::time::sleep(TRIM_INTERVAL).await;
            board.advanced().await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = round => {}
        }
    }
}

#[cfg(test)]
mod tests;
