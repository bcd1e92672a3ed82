//! Collects what the hub promises while everything around it is killed: each buffered position it ever showed.

use crate::client::Client;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// TXID to database checksum, per database name: every buffered position that was seen.
pub type Promises = BTreeMap<String, BTreeMap<u64, u64>>;

/// A thread that keeps asking.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Promises>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts asking, every 10 ms while the hub answers.
    pub fn start(client: Client) -> Watch {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Promises::new())));
        let (stopped, sink) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                ask(&client, &sink);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Watch { stop, seen, thread: Some(thread) }
    }

    /// Ends asking; gives what was seen.
    pub fn stop(mut self) -> Promises {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a promise was broken");
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask(client: &Client, seen: &Mutex<Promises>) {
    // The hub is away whenever the test has killed it.
    let Ok(status) = client.status() else { return };
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    for database in status.databases {
        let (Some(key), Some(position)) = (database.database, database.buffered) else { continue };
        if position.txid == 0 {
            continue;
        }
        let history = seen.entry(key.name.clone()).or_default();
        let newest = history.keys().next_back().copied().unwrap_or(0);
        assert!(
            position.txid >= newest,
            "{}: the hub went back from {newest} to {}",
            key.name,
            position.txid
        );
        let before = history.insert(position.txid, position.checksum);
        assert!(
            before.is_none_or(|before| before == position.checksum),
            "{}: two checksums for TXID {}",
            key.name,
            position.txid
        );
    }
}
