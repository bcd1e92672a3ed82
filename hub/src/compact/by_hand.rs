//! Compaction at times of the caller's choice: for tests that let days pass in seconds.

use super::prepare;
use super::tail::Tails;
use super::work::Worker;
use crate::buffer::WalBuffer;
use crate::copies::Board;
use crate::retain::{Holds, Pins};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use walhub_common::task::TaskGroup;

/// What [`super::Compactor`] runs, without its clock.
pub struct ByHand {
    worker: Worker,
    tasks: TaskGroup,
}

impl ByHand {
    /// As [`super::Compactor::start`].
    pub fn new(
        buffer: Arc<dyn WalBuffer>,
        board: Arc<Board>,
        levels: Vec<Duration>,
        folder: &Path,
        holds: Arc<Holds>,
        pins: Pins,
    ) -> io::Result<ByHand> {
        let folder = prepare(folder)?;
        let tasks = TaskGroup::new("compaction");
        let abort = CancellationToken::new();
        let tails = Tails::new(holds, pins, folder.clone(), abort.clone());
        let worker = Worker::new(buffer, board, levels, folder, tasks.clone(), tails, abort);
        Ok(ByHand { worker, tasks })
    }

    /// Does what is due at `now_ms` and waits until what was made is put everywhere.
    pub async fn pass(&mut self, now_ms: i64) {
        self.worker.look(now_ms);
        self.worker.pass(now_ms).await;
        let mut unfinished = self.worker.unfinished();
        // Its other end lives in the worker.
        let _ = unfinished.wait_for(|count| *count == 0).await;
    }

    /// Ends the tasks that put files.
    pub async fn end(self) {
        self.tasks.shutdown(Duration::from_secs(10)).await;
    }
}
