//! Drills: restores that are tried before they are needed, one copy after the other, and what they found.
//!
//! - [`rules`]: what is to be done; [`schedule`]: which copy is next, and when. Pure.
//! - [`run`](self::run): one drill: everything is read from the one destination that is tried, restored into scratch space ([`image`]), held
//!   against the checksum that the source took, and shown to SQLite; then a few older points ([`points`]). Where it does not hold,
//!   the objects used are read one by one, and those to blame are named; [`crate::repair`] makes them anew.
//! - [`ledger`]: results on disk.
//!
//! # Invariants
//! - One drill at a time, in scratch space of its own which is emptied at start, within bounds of size, bandwidth and time.
//! - Nothing of the database that is read is deleted meanwhile ([`crate::retain::Pins`]).
//! - Every copy gets its turn; results and turns outlive the hub.
//! - Other rules hold from the next drill on; one under way keeps its own.
//! - A drill that failed is an error in the log and stays in the status until one passes.
//!
//! Non-goals: how results are shown ([`crate::api`], [`crate::metrics`]).

mod checks;
mod image;
mod ledger;
mod meter;
mod model;
mod points;
mod rules;
mod run;
mod schedule;
mod tally;

#[cfg(test)]
mod tests;

pub use ledger::Ledger;
pub use model::{Copy, Drill, OlderPoint, Verdict};
pub use rules::{Assertions, Current, Rules};
pub use run::Asked;
pub use tally::{Sum, Sums};

use crate::buffer::WalBuffer;
use crate::copies::Board;
use crate::retain::{Holds, Pins};
use ledger::Book;
use run::Runner;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tally::Tally;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::task::TaskGroup;
use walhub_common::{DatabaseKey, DestinationName, clock};

/// How often it is looked whether a drill is due.
const LOOK: Duration = Duration::from_secs(10);
const LEAST_WAIT: Duration = Duration::from_millis(20);
/// Time between two attempts to go on with a repair that was broken off.
const SETTLE: Duration = Duration::from_secs(300);
/// Drills that were asked for and wait.
const MOST_WAITING: usize = 64;

/// Why a drill was not made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DrillError {
    /// Too many wait.
    #[error("{MOST_WAITING} drills wait already; try again later")]
    Busy,
    /// The hub is going down.
    #[error("the hub is shutting down")]
    Ended,
}

/// How drills stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outlook {
    /// The configuration.
    pub rules: Arc<Rules>,
    /// Databases at destinations.
    pub copies: usize,
    /// What is tried right now, and since when, Unix ms.
    pub running: Option<(Copy, i64)>,
}

struct Inner {
    buffer: Arc<dyn WalBuffer>,
    board: Arc<Board>,
    book: Book,
    rules: Current,
    running: Mutex<Option<(Copy, i64)>>,
    tally: Tally,
}

struct Order {
    asked: Asked,
    reply: oneshot::Sender<Drill>,
}

/// Handle on the drills of a hub.
#[derive(Clone)]
pub struct Drills {
    inner: Arc<Inner>,
    orders: mpsc::Sender<Order>,
}

/// What drills need of the hub.
pub struct Parts {
    /// Knows the databases, and their newest checksums.
    pub buffer: Arc<dyn WalBuffer>,
    /// Knows who holds what.
    pub board: Arc<Board>,
    /// Who reads what.
    pub pins: Pins,
    /// What must not be deleted.
    pub holds: Arc<Holds>,
}

impl Drills {
    /// Begins; ends with `tasks`. The scratch space is in `data_dir` unless the rules say otherwise. Blocking, shortly.
    pub fn start(
        parts: Parts,
        ledger: Ledger,
        rules: Current,
        data_dir: &Path,
        tasks: &TaskGroup,
    ) -> io::Result<Drills> {
        let scratch = rules.now().scratch_folder(data_dir);
        if scratch.exists() {
            std::fs::remove_dir_all(&scratch)?;
        }
        std::fs::create_dir_all(&scratch)?;
        let Parts { buffer, board, pins, holds } = parts;
        let book = Book::new(ledger);
        let runner = Runner {
            buffer: buffer.clone(),
            board: board.clone(),
            pins,
            holds,
            data_dir: data_dir.to_owned(),
            book: book.clone(),
            stop: tasks.token().clone(),
        };
        let inner = Arc::new(Inner {
            buffer,
            board,
            book,
            rules,
            running: Mutex::default(),
            tally: Tally::default(),
        });
        let (orders, queue) = mpsc::channel(MOST_WAITING);
        let owner = Owner { inner: inner.clone(), runner, stop: tasks.token().clone() };
        tasks.spawn(owner.run(queue));
        Ok(Drills { inner, orders })
    }

    /// Tries a copy now, after those that others asked for. Dropping the future gives it up.
    pub async fn run(&self, asked: Asked) -> Result<Drill, DrillError> {
        let (reply, done) = oneshot::channel();
        self.orders.try_send(Order { asked, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => DrillError::Busy,
            mpsc::error::TrySendError::Closed(_) => DrillError::Ended,
        })?;
        done.await.map_err(|_| DrillError::Ended)
    }

    /// The destinations that a database goes to; `None` when the hub does not know it.
    pub fn copies_of(&self, database: &DatabaseKey) -> Option<Vec<Copy>> {
        let known = self.inner.buffer.find(database)?;
        let terms = self.inner.board.row(known.id, &known.key).terms;
        let copy = |name: &DestinationName| Copy { database: known.key.clone(), destination: name.clone() };
        Some(terms.places.iter().map(|place| copy(place.name())).collect())
    }

    /// The last drill of a copy.
    pub fn last(&self, copy: &Copy) -> Option<Drill> {
        self.inner.book.open().last(copy).cloned()
    }

    /// Drills by copy, newest first; only the last of each unless `history`.
    pub fn list(
        &self,
        database: Option<&DatabaseKey>,
        destination: Option<&DestinationName>,
        history: bool,
    ) -> Vec<Drill> {
        let asked = |copy: &Copy| {
            database.is_none_or(|asked| *asked == copy.database)
                && destination.is_none_or(|asked| *asked == copy.destination)
        };
        let ledger = self.inner.book.open();
        let of = ledger.all().filter(|(copy, _)| asked(copy));
        let most = if history { usize::MAX } else { 1 };
        of.flat_map(|(_, drills)| drills.iter().rev().take(most).cloned()).collect()
    }

    /// Shows the drills that are kept of each copy, oldest first; nothing else of drills can be asked meanwhile.
    pub fn visit(&self, mut look: impl FnMut(&Copy, &VecDeque<Drill>)) {
        self.inner.book.open().all().for_each(|(copy, drills)| look(copy, drills));
    }

    /// Mean time between two drills of the schedule, with as many copies as there are now; `None` without a schedule.
    pub fn interval(&self) -> Option<Duration> {
        self.inner.interval()
    }

    /// Drills of this hub's life, in sums.
    pub fn sums(&self) -> Sums {
        self.inner.tally.sums()
    }

    /// How drills stand.
    pub fn outlook(&self) -> Outlook {
        let running = self.inner.running().clone();
        Outlook { rules: self.inner.rules.now(), copies: self.inner.copies(false).len(), running }
    }
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, Option<(Copy, i64)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interval(&self) -> Option<Duration> {
        let Rules { every, sample, .. } = *self.rules.now();
        Some(schedule::interval(every?, sample, self.copies(false).len()))
    }

    /// Every database at each of its destinations that is known to hold something; with `ready`, only those that answer.
    fn copies(&self, ready: bool) -> Vec<Copy> {
        let mut copies = Vec::new();
        for database in self.buffer.databases() {
            let row = self.board.row(database.id, &database.key);
            for place in &row.terms.places {
                if row.held(place.lane).is_some() && (!ready || self.board.health(place.lane).healthy) {
                    let (database, destination) = (database.key.clone(), place.name().clone());
                    copies.push(Copy { database, destination });
                }
            }
        }
        copies
    }
}

/// When what happened.
struct Times {
    seed: u64,
    /// The last drill of the schedule began, or the hub.
    since: Instant,
    /// It was the hub.
    first: bool,
    /// When the newest drill of an earlier hub began, Unix ms.
    newest_ms: Option<i64>,
    /// When this hub began, Unix ms.
    started_ms: i64,
    /// From then on repairs that were broken off are tried again.
    settle: Instant,
}

struct Owner {
    inner: Arc<Inner>,
    runner: Runner,
    stop: CancellationToken,
}

impl Owner {
    async fn run(self, mut queue: mpsc::Receiver<Order>) {
        let newest_ms = self.inner.book.open().newest_ms();
        let mut times = Times {
            seed: rand::random(),
            since: Instant::now(),
            first: true,
            newest_ms,
            started_ms: clock::now_ms(),
            settle: Instant::now(),
        };
        let mut changes = self.inner.rules.changes();
        loop {
            // A look is cheap, and what is ready may change without a word.
            let wake = Instant::now() + LOOK.min(self.wait(&times));
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                order = queue.recv() => {
                    let Some(order) = order else { return };
                    self.obey(order).await;
                }
                // Another schedule: when the next is due is found out anew.
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(wake) => self.look(&mut times).await,
            }
        }
    }

    /// How long until the next drill of the schedule.
    fn due_in(&self, times: &Times) -> Option<Duration> {
        let interval = self.inner.interval()?;
        let after = match times.first {
            true => schedule::first(interval, times.newest_ms, times.started_ms),
            false => schedule::jittered(interval, times.seed),
        };
        Some(after.saturating_sub(times.since.elapsed()))
    }

    /// How long until it is worth a look; never nothing, for it may be that nobody is ready.
    fn wait(&self, times: &Times) -> Duration {
        self.due_in(times).unwrap_or(LOOK).max(LEAST_WAIT)
    }

    /// Tries what is due.
    async fn look(&self, times: &mut Times) {
        let broken_off = match times.settle <= Instant::now() {
            true => self.inner.book.open().unsettled(),
            false => Vec::new(),
        };
        let due = self.due_in(times).is_some_and(|wait| wait.is_zero());
        if broken_off.is_empty() && !due {
            return;
        }
        let ready = self.inner.copies(true);
        if let Some(copy) = broken_off.into_iter().find(|copy| ready.contains(copy)) {
            tracing::info!(%copy, "a repair was broken off: it is tried again");
            self.drill(&Asked { copy, repair: true, every_file: false }, &self.stop.child_token()).await;
            times.settle = Instant::now() + SETTLE;
            return;
        }
        if !due {
            return;
        }
        let next = {
            let ledger = self.inner.book.open();
            schedule::next(&ready, |copy| ledger.known(copy), clock::now_ms(), times.seed).cloned()
        };
        if let Some(copy) = next {
            times.since = Instant::now();
            let asked = Asked { copy, repair: self.inner.rules.now().repair, every_file: false };
            self.drill(&asked, &self.stop.child_token()).await;
            (times.seed, times.first) = (times.seed.wrapping_add(1), false);
        }
    }

    /// A drill that somebody waits for; it is given up when nobody does any more.
    async fn obey(&self, Order { asked, mut reply }: Order) {
        let cancel = self.stop.child_token();
        let drill = {
            let drilling = self.drill(&asked, &cancel);
            tokio::pin!(drilling);
            tokio::select! {
                drill = &mut drilling => drill,
                () = reply.closed() => {
                    cancel.cancel();
                    drilling.await
                }
            }
        };
        let _ = reply.send(drill);
    }

    /// A drill, recorded and told.
    async fn drill(&self, asked: &Asked, cancel: &CancellationToken) -> Drill {
        *self.inner.running() = Some((asked.copy.clone(), clock::now_ms()));
        let rules = self.inner.rules.now();
        let (timeout, late) = (rules.timeout, cancel.child_token());
        let mut drill = {
            let running = self.runner.run(asked, rules, &late);
            tokio::pin!(running);
            tokio::select! {
                drill = &mut running => drill,
                () = tokio::time::sleep(timeout) => {
                    late.cancel();
                    let drill = running.await;
                    match drill.verdict {
                        Verdict::Undone => Drill { message: format!("it took longer than {timeout:?}"), ..drill },
                        _ => drill,
                    }
                }
            }
        };
        if drill.verdict == Verdict::Undone && self.stop.is_cancelled() {
            // Its turn comes again.
            drill.message = "the hub went down".to_owned();
        }
        tell(&drill);
        self.inner.tally.count(&drill);
        self.inner.book.add(drill.clone()).await;
        *self.inner.running() = None;
        drill
    }
}

fn tell(drill: &Drill) {
    let Drill {
        copy: Copy { database, destination },
        verdict,
        txid,
        elapsed_ms,
        bytes,
        message,
        repairs,
        ..
    } = drill;
    let repairs = repairs.join("; ");
    match verdict {
        Verdict::Passed => {
            tracing::info!(%database, %destination, txid, elapsed_ms, bytes, "drill passed");
        }
        Verdict::Repaired => {
            tracing::warn!(%database, %destination, txid, elapsed_ms, message, repairs, "drill passed after a repair");
        }
        Verdict::Failed | Verdict::Repairing => {
            tracing::error!(%database, %destination, message, repairs, "drill failed: this copy cannot be relied on");
        }
        Verdict::Undone => tracing::warn!(%database, %destination, message, "a drill could not be made"),
    }
}
