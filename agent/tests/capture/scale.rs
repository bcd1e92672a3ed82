//! Cost: latency of a small transaction, and nothing in proportion to what did not change.

use crate::child::App;
use crate::hub::{Discard, Place};
use std::time::{Duration, Instant};
use walhub_agent::capture::Next;

#[test]
fn a_small_transaction_costs_the_same_in_a_long_log() {
    let place = Place::with_frames(1_000_000);
    let mut app = App::create(&place.db(), "");
    let (mut capture, mut replica) = place.follow();
    app.insert_many(4000);
    replica.drain(&mut capture);
    let mut best = Duration::MAX;
    for _ in 0..200 {
        app.insert();
        let begun = Instant::now();
        assert!(matches!(capture.next(&mut Discard).unwrap(), Next::Sent(_)));
        best = best.min(begun.elapsed());
    }
    // Unoptimised code on a busy machine; a scan of this log of 16 MB would take many times longer.
    println!("best of 200: {best:?}");
    assert!(best < Duration::from_millis(2), "{best:?}");
}
