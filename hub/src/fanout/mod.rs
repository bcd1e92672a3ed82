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
//! - At a packed destination the files of all databases that are behind go together in one object; they are the same
//!   files in the same order.
//!
//! Non-goals: no compaction, no retention.

mod budget;
mod build;
mod catchup;
pub(crate) mod coverage;
mod error;
mod lane;
mod pauses;
mod schedule;
mod spending;
mod tray;
mod turn;

use crate::buffer::WalBuffer;
use crate::copies::{Board, LaneId, Place};
use lane::Lane;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use walhub_common::task::TaskGroup;

/// Requests of today are written down as often as this.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// At most one round of giving space back in this time.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);
/// After the deadline of a shutdown, puts are cancelled and get this long.
const ABORT_GRACE: Duration = Duration::from_secs(2);

/// What is believed of a destination before it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// The buffer's record of how far it was served: it was in service when that was written.
    Cursors,
    /// Nothing: it is listed first.
    Listings,
}

/// Where a lane works: what its turns use. Nothing in it is held across a wait.
struct Venue {
    buffer: Arc<dyn WalBuffer>,
    board: Arc<Board>,
    place: Arc<Place>,
    tmp: PathBuf,
    /// Ends calls to the destination; cancelled only when the deadline of a shutdown has passed.
    abort: CancellationToken,
}

struct Running {
    tasks: TaskGroup,
    abort: CancellationToken,
}

impl Running {
    /// Starts no new put and waits for the current ones, at most `deadline`; then they are cancelled.
    async fn end(self, deadline: Duration) {
        if !self.tasks.shutdown(deadline).await {
            self.abort.cancel();
            self.tasks.shutdown(ABORT_GRACE).await;
        }
    }
}

/// The running lanes.
pub struct Fanout {
    buffer: Arc<dyn WalBuffer>,
    board: Arc<Board>,
    tmp: PathBuf,
    lanes: Mutex<HashMap<LaneId, Running>>,
    housekeeping: TaskGroup,
}

impl Fanout {
    /// Starts a lane for each destination of the board's roster. Large files in the making lie in `tmp`, which is emptied
    /// first.
    pub fn start(buffer: Arc<dyn WalBuffer>, board: Arc<Board>, tmp: &Path) -> io::Result<Fanout> {
        empty_dir(tmp)?;
        let housekeeping = TaskGroup::new("buffer space");
        let fanout = Fanout {
            buffer: buffer.clone(),
            board: board.clone(),
            tmp: tmp.to_path_buf(),
            lanes: Mutex::default(),
            housekeeping,
        };
        for place in board.roster().places() {
            fanout.open(place.clone(), Trust::Cursors);
        }
        let stop = fanout.housekeeping.token().clone();
        fanout.housekeeping.spawn(keep_house(buffer, board, stop));
        Ok(fanout)
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<LaneId, Running>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the lane of a destination that is in the board's roster.
    pub fn open(&self, place: Arc<Place>, trust: Trust) {
        let (lane, tasks, abort) = (place.lane, TaskGroup::new("lane"), CancellationToken::new());
        let (buffer, board, tmp) = (self.buffer.clone(), self.board.clone(), self.tmp.clone());
        let venue = Arc::new(Venue { buffer, board, place, tmp, abort: abort.clone() });
        tasks.spawn(Lane::new(venue, trust, tasks.token().clone()).run());
        let before = self.lanes().insert(lane, Running { tasks, abort });
        assert!(before.is_none(), "BUG: lane {lane} runs already");
    }

    /// Ends some lanes: no new put is started, current ones get `deadline`, then they are cancelled.
    pub async fn close(&self, lanes: &[LaneId], deadline: Duration) {
        let ending: Vec<Running> = {
            let mut running = self.lanes();
            lanes.iter().filter_map(|lane| running.remove(lane)).collect()
        };
        futures_util::future::join_all(ending.into_iter().map(|lane| lane.end(deadline))).await;
    }

    /// Ends all lanes, as [`Fanout::close`] does.
    pub async fn shutdown(&self, deadline: Duration) {
        let lanes: Vec<LaneId> = self.lanes().keys().copied().collect();
        self.close(&lanes, deadline).await;
        self.housekeeping.shutdown(ABORT_GRACE).await;
    }
}

fn empty_dir(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for entry in std::fs::read_dir(dir)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// Gives buffer space back when destinations have advanced, and writes down what they were asked.
async fn keep_house(buffer: Arc<dyn WalBuffer>, board: Arc<Board>, stop: CancellationToken) {
    let mut saved = Instant::now();
    loop {
        if saved.elapsed() >= SAVE_INTERVAL {
            save(&board).await;
            saved = Instant::now();
        }
        if let Err(error) = buffer.trim(board.clone()).await {
            tracing::warn!(%error, "cannot give buffer space back");
        }
        let round = async {
            tokio::time::sleep(TRIM_INTERVAL).await;
            board.advanced().await;
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = round => {}
        }
    }
    save(&board).await;
}

/// Writes the requests of today down.
async fn save(board: &Arc<Board>) {
    let board = board.clone();
    match tokio::task::spawn_blocking(move || board.meters().save()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot write the requests of today down"),
        Err(error) => tracing::error!(%error, "a bug ended the writing of the requests of today"),
    }
}

#[cfg(test)]
mod tests;
