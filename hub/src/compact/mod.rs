//! Compaction and snapshots: files of level 1, 2, 3 and whole databases, made once per database and put to every
//! destination that takes them.
//!
//! # Invariants
//! - A file of a level covers one aligned window of hub time, as far as the level below is known exactly; it begins right
//!   behind the level's newest file, so there is no hole and no file claims what it does not hold.
//! - A file is put only where the lane has brought everything up to its end and something leads to its beginning ([`publish`]):
//!   whatever a destination lists, restores.
//! - What a destination could not take is brought there later ([`backfill`]).
//! - A snapshot is published only when its pages give the database checksum that the agent took there.
//! - One file is made at a time, by one task; one destination that fails delays nobody else.
//! - What is not on a destination is nowhere: after a crash everything is derived anew from listings, one look per database
//!   at each destination, and only for databases that do something.
//! - Where a database rests in a folder, its newest transaction lies alone in level 0 ([`tail`]).
//! - Nothing that a file is made of is deleted while it is being made ([`crate::retain::Pins`]).
//! - A database without transactions costs nothing: no request, no wake.
//!
//! Non-goals: no deletion (that is retention) but of what [`tail`] replaces, no packing.

mod backfill;
#[cfg(any(test, feature = "testutil"))]
mod by_hand;
mod error;
mod make;
mod publish;
mod report;
mod snapshot;
mod sources;
mod state;
mod tail;
#[cfg(test)]
mod tests;
mod whereabouts;
mod window;
mod work;

#[cfg(any(test, feature = "testutil"))]
pub use by_hand::ByHand;
pub use report::{Newest, Report, Totals};
pub(crate) use sources::streamed;

use crate::buffer::WalBuffer;
use crate::config::Layout;
use crate::copies::{Board, Place};
use crate::retain::{Holds, Pins};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tail::Tails;
use tokio_util::sync::CancellationToken;
use walhub_common::task::TaskGroup;
use walhub_common::{DatabaseKey, clock};
use work::Worker;

/// Pause between two looks for databases that did something.
const LOOK: Duration = Duration::from_secs(2);
/// After the deadline of a shutdown, puts are cancelled and get this long.
const ABORT_GRACE: Duration = Duration::from_secs(2);
/// A packed destination takes levels of at least this interval, and snapshots: it is about few requests.
const PACKED_INTERVAL: Duration = Duration::from_secs(3600);

/// Does a destination take files of a level with this interval?
fn takes(place: &Place, interval: Duration) -> bool {
    match place.entry.layout {
        Layout::Litestream => true,
        Layout::Packed => interval >= PACKED_INTERVAL,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Spreads the fleet over a tenth of a window, so that it does not wake as one.
fn jitter(key: &DatabaseKey, interval: Duration) -> i64 {
    let hash = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, key.to_string().as_bytes());
    let tenth = millis(interval) / 10;
    ((u128::from(hash) * tenth as u128) >> 64) as i64
}

/// The running compaction.
pub struct Compactor {
    tasks: TaskGroup,
    abort: CancellationToken,
}

impl Compactor {
    /// Starts with these windows (level 1 first). Files in the making lie in `folder`, which is emptied first.
    pub fn start(
        buffer: Arc<dyn WalBuffer>,
        board: Arc<Board>,
        levels: Vec<Duration>,
        folder: &Path,
        holds: Arc<Holds>,
        pins: Pins,
    ) -> io::Result<Compactor> {
        let folder = prepare(folder)?;
        let (tasks, abort) = (TaskGroup::new("compaction"), CancellationToken::new());
        let tails = Tails::new(holds, pins, folder.clone(), abort.clone());
        let worker = Worker::new(buffer, board, levels, folder, tasks.clone(), tails, abort.clone());
        tasks.spawn(run(worker, tasks.token().clone()));
        Ok(Compactor { tasks, abort })
    }

    /// Makes nothing new, gives up what is in the making, and waits for current puts, at most `deadline`.
    pub async fn shutdown(&self, deadline: Duration) {
        if !self.tasks.shutdown(deadline).await {
            self.abort.cancel();
            self.tasks.shutdown(ABORT_GRACE).await;
        }
    }
}

/// An empty folder: what a crash left in it is worth nothing.
fn prepare(folder: &Path) -> io::Result<PathBuf> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => std::fs::create_dir_all(folder)?,
    }
    Ok(folder.to_path_buf())
}

async fn run(mut worker: Worker, stop: CancellationToken) {
    let mut changed = worker.changed();
    loop {
        worker.look(clock::now_ms());
        let next_ms = worker.pass(clock::now_ms()).await;
        let due = async {
            match next_ms {
                Some(at) => {
                    let pause = u64::try_from(at - clock::now_ms()).unwrap_or(0);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                None => std::future::pending().await,
            }
        };
        let news = async {
            let ended = changed.changed().await.is_err();
            tokio::time::sleep(LOOK).await;
            ended
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = due => {}
            ended = news => if ended { return },
        }
    }
}
