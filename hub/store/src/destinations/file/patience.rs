//! The time limit of calls that block in the kernel. A disk that hangs (a dead NFS server, a controller that lost its mind) answers
//! neither yes nor no, and a thread that waits for it cannot be ended.
//!
//! # Invariants
//! - A call ends when its work has shown no sign of life for the limit: a piece that was written, an entry that was listed. So
//!   a large file or folder takes as long as it takes. What the work does afterwards, alone, is what a put with an unknown
//!   outcome may do, and it ends at its next step.
//! - Calls that were given up, by us or by whoever made them, hold a thread each until they end. When [`MAX_HANGING`] of them do, the next ones fail at once: one disk does
//!   not take all the threads of the hub.

use crate::destinations::error::Context;
use crate::destinations::{DestinationError, Fault};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// How long a disk may do nothing. Spinning ones that wake up, and networks that heal, take half of it.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// Part of the limit in which the work of a call that nobody waits for any more has to end.
const LAST_STEP: u32 = 10;
/// Calls that may hang at a time.
const MAX_HANGING: usize = 8;

/// Where work says that it lives, and hears whether it is still wanted.
#[derive(Debug)]
pub(super) struct Pulse {
    cancel: CancellationToken,
    beats: AtomicU64,
}

impl Pulse {
    /// Of work that nobody waits for.
    #[cfg(test)]
    pub(super) fn idle() -> Self {
        Self { cancel: CancellationToken::new(), beats: AtomicU64::new(0) }
    }

    /// A sign of life; true when the work is to end.
    pub(super) fn beat(&self) -> bool {
        self.beats.fetch_add(1, Ordering::Relaxed);
        self.cancel.is_cancelled()
    }
}

/// See the module doc.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Duration,
    hanging: Arc<AtomicUsize>,
}

/// One call: counted as hanging from when it is given up until its work ends.
struct Call {
    hanging: Arc<AtomicUsize>,
    /// It was given up, or has ended: whoever is second settles the count.
    settled: AtomicBool,
}

impl Call {
    fn give_up(&self) {
        self.hanging.fetch_add(1, Ordering::SeqCst);
        self.settle();
    }

    /// The second of the two takes it off the count; of work that ended in time nobody is second.
    fn settle(&self) {
        if self.settled.swap(true, Ordering::SeqCst) {
            self.hanging.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Whoever called waits. When that ends before the work does, the work is to end as well.
struct Waiting {
    call: Arc<Call>,
    pulse: Arc<Pulse>,
    last_step: Duration,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.call.settled.load(Ordering::SeqCst) {
            return;
        }
        self.pulse.cancel.cancel();
        let (call, last_step) = (self.call.clone(), self.last_step);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(last_step).await;
                call.give_up();
            });
        }
    }
}

/// Ends with the work, also when that panics.
struct Ending(Arc<Call>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.settle();
    }
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, hanging: Arc::default() }
    }

    /// Runs `work` where it may block. When it is cancelled or dropped meanwhile, or shows no sign of life, the work goes on alone
    /// to its next step and its result is dropped.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        context: &Context,
        cancel: &CancellationToken,
        work: impl FnOnce(&Pulse) -> Result<T, DestinationError> + Send + 'static,
    ) -> Result<T, DestinationError> {
        if cancel.is_cancelled() {
            return Err(context.error(Fault::Cancelled));
        }
        let hanging = self.hanging.load(Ordering::SeqCst);
        if hanging >= MAX_HANGING {
            let text =
                format!("{hanging} calls hang there without an answer; look at its disk or its network");
            return Err(context.error(Fault::Unavailable(text)));
        }
        let pulse = Arc::new(Pulse { cancel: cancel.child_token(), beats: AtomicU64::new(0) });
        let call = Arc::new(Call { hanging: self.hanging.clone(), settled: AtomicBool::new(false) });
        let last_step = self.limit / LAST_STEP;
        let _waiting = Waiting { call: call.clone(), pulse: pulse.clone(), last_step };
        let mut working = {
            let (pulse, ending) = (pulse.clone(), Ending(call.clone()));
            tokio::task::spawn_blocking(move || {
                let result = work(&pulse);
                drop(ending);
                result
            })
        };
        let mut heard = 0;
        loop {
            tokio::select! {
                biased;
                result = &mut working => return match result {
                    Ok(result) => result,
                    Err(error) => {
                        Err(context.error(Fault::Unavailable(format!("the worker thread ended: {error}"))))
                    }
                },
                () = cancel.cancelled() => return Err(context.error(Fault::Cancelled)),
                () = tokio::time::sleep(self.limit) => {
                    let beats = pulse.beats.load(Ordering::Relaxed);
                    if beats == heard {
                        pulse.cancel.cancel();
                        call.give_up();
                        return Err(context.error(Fault::TimedOut { after: self.limit }));
                    }
                    heard = beats;
                }
            }
        }
    }
}
