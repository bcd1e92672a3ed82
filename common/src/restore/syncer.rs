//! Makes a file durable while it is still being written, so that the disk works beside the two other threads and the
//! final sync has little left to do.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes written between two syncs.
const STEP: u64 = 32 * 1024 * 1024;

/// A thread that syncs on request. Dropping it waits for the sync under way.
#[derive(Debug)]
pub(super) struct Syncer {
    due: Option<SyncSender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    since: u64,
}

impl Syncer {
    pub(super) fn start(file: File) -> io::Result<Syncer> {
        let (due, requests) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("restore-syncer".to_owned())
            .spawn(move || requests.iter().try_for_each(|()| file.sync_data()))?;
        Ok(Syncer { due: Some(due), thread: Some(thread), since: 0 })
    }

    /// Notes that bytes were written; never waits.
    pub(super) fn wrote(&mut self, bytes: u64) {
        self.since += bytes;
        if self.since >= STEP
            && let Some(due) = &self.due
        {
            self.since = 0;
            // Full: the sync that waits there will cover these bytes as well.
            let _ = due.try_send(());
        }
    }

    /// Ends the thread. The system reports a lost write only once, so an error seen here must not be dropped: the
    /// final sync would succeed.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.due = None;
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(()),
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.due = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
