//! Orders of the hub: taken from the stream, carried out one at a time per database, told about until the hub knows.
//!
//! Invariants:
//! - an id is carried out once: its end is on disk before it is said, and a repetition is answered with it;
//! - the stream is never held up: orders go into a bounded inbox, updates are merged, and only the newest is said;
//! - an order outlives the stream that brought it. It does not outlive the agent: the hub repeats it.
//!
//! Non-goals: how a database is restored ([`crate::restore`]), which databases and when (the hub).

mod book;
mod ends;

use crate::disk::Disk;
use crate::restore::{self, Failure, Ground, Mode, Order, Outcome, Phase};
use crate::state_dir::StateDir;
use book::{Book, Ended};
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseName;
use walhub_common::backoff::Backoff;
use walhub_common::limits::MAX_DATABASES_PER_AGENT;
use walhub_common::task::TaskGroup;
use walhub_proto::convert::position_from_wire;
use walhub_proto::v1::replicate_request::Message;
use walhub_proto::v1::{OrderMode, OrderUpdate, RestoreOrder};

/// Orders carried out at one time.
const AT_ONCE: usize = 2;
/// Progress between two states is said this often.
const PROGRESS: Duration = Duration::from_millis(500);
/// Longest id that is taken, bytes.
const MAX_ID_BYTES: usize = 64;
/// Checks of one order.
const MAX_CHECKS: usize = 64;
/// The hub may go away so often while one order is carried out; between two tries passes so long, and until it is back.
const TRIES: u32 = 20;
/// A broken stream is noticed within this time.
const NOTICED: Duration = Duration::from_millis(500);
const AGAIN_MIN: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// Cancelled work may take this long to put its scratch files away.
const ENDING: Duration = Duration::from_secs(10);

/// Orders on their way from the stream to whoever carries them out. Never blocks, never grows beyond the databases that a
/// node may have; what does not fit the hub repeats with the next stream.
#[derive(Debug, Default)]
pub struct Inbox {
    orders: Mutex<BTreeMap<String, RestoreOrder>>,
    arrived: Notify,
}

impl Inbox {
    /// Leaves an order; one with the same id that still lies there is replaced.
    pub fn post(&self, order: RestoreOrder) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if orders.len() < MAX_DATABASES_PER_AGENT || orders.contains_key(&order.id) {
            orders.insert(order.id.clone(), order);
        }
        self.arrived.notify_one();
    }

    fn take(&self) -> BTreeMap<String, RestoreOrder> {
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Carries orders out.
pub struct Orders {
    ground: Ground,
    inbox: Arc<Inbox>,
    book: Arc<Mutex<Book>>,
    /// Something of the book is to be said, or an order has ended.
    news: Arc<Notify>,
}

impl Orders {
    /// Of the orders that arrive in `inbox`.
    pub fn new(ground: Ground, inbox: Arc<Inbox>) -> Orders {
        Orders { ground, inbox, book: Arc::default(), news: Arc::default() }
    }

    /// Takes orders until the token is cancelled; what is under way then is given up, or finished if it is applying.
    pub async fn run(self, token: CancellationToken) {
        let work = TaskGroup::new("orders");
        let mut beat = tokio::time::interval(PROGRESS);
        loop {
            self.receive().await;
            while let Some((order, cancel)) = lock(&self.book).next(AT_ONCE) {
                self.start(&work, order, cancel);
            }
            tokio::select! {
                () = token.cancelled() => break,
                () = self.say() => {}
            }
            tokio::select! {
                () = token.cancelled() => break,
                () = self.inbox.arrived.notified() => {}
                () = self.news.notified() => {}
                _ = beat.tick(), if lock(&self.book).is_busy() => lock(&self.book).refresh(),
            }
        }
        lock(&self.book).give_up();
        work.shutdown(ENDING).await;
    }

    /// Enters what arrived into the book.
    async fn receive(&self) {
        for (id, message) in self.inbox.take() {
            if lock(&self.book).repeated(&message) {
                continue;
            }
            let order = self.understand(&message);
            let ended = match &order {
                Ok(order) => self.remembered(order).await,
                Err(_) => None,
            };
            lock(&self.book).enter(id, order, ended, message.cancel);
        }
    }

    /// Orders are made by the hub; what cannot be is an order of a newer one.
    fn understand(&self, message: &RestoreOrder) -> Result<Order, String> {
        if message.id.is_empty() || message.id.len() > MAX_ID_BYTES || message.checks.len() > MAX_CHECKS {
            return Err("the order is none that this agent understands".into());
        }
        let database = DatabaseName::new(message.database.as_str()).map_err(|e| e.to_string())?;
        let path = self.path_of(&database)?;
        let until = position_from_wire(message.until.as_ref()).map_err(|e| e.to_string())?;
        let mode = match OrderMode::try_from(message.mode) {
            Ok(OrderMode::InPlace) => Mode::InPlace,
            Ok(OrderMode::Replace) => Mode::Replace,
            Ok(OrderMode::Unspecified) | Err(_) => return Err("this agent does not know that mode".into()),
        };
        Ok(Order {
            id: message.id.clone(),
            database,
            path,
            until: until.ok_or("the order names no position")?,
            mode,
            checks: message.checks.clone(),
            max_bytes_per_second: NonZeroU64::new(message.max_bytes_per_second),
        })
    }

    /// Also of a database whose file is gone: it is followed under its name, or it was once.
    fn path_of(&self, name: &DatabaseName) -> Result<PathBuf, String> {
        match self.ground.public.find(name.as_str()) {
            Ok(contact) => Ok(contact.path),
            Err(refused) => self.ground.shared.state.path_of(name).ok_or(refused.message),
        }
    }

    async fn remembered(&self, order: &Order) -> Option<OrderUpdate> {
        let (state, name, id) = (self.ground.shared.state.clone(), order.database.clone(), order.id.clone());
        tokio::task::spawn_blocking(move || ends::read(&state, &name, &id)).await.ok().flatten()
    }

    fn start(&self, work: &TaskGroup, order: Order, cancel: CancellationToken) {
        let (ground, book, news) = (self.ground.clone(), self.book.clone(), self.news.clone());
        tracing::info!(database = %order.database, order = order.id, until = %order.until, "restoring as the hub ordered");
        work.spawn(async move {
            let tell = |phase: Phase, bytes: u64, total: u64| {
                if lock(&book).progress(&order.id, phase, bytes, total) {
                    news.notify_one();
                }
            };
            let result = carry_out(&ground, &order, &tell, &cancel).await;
            match &result {
                Ok(outcome) => tracing::info!(
                    database = %order.database, order = order.id, new_txid = outcome.new_txid.map(|t| t.get()),
                    safety_txid = outcome.safety_txid.map(|t| t.get()), bytes = outcome.bytes, "restored as ordered"
                ),
                Err(Failure::Cancelled) => {
                    tracing::info!(database = %order.database, order = order.id, "the order was taken back");
                }
                Err(Failure::Failed(reason)) => {
                    tracing::warn!(database = %order.database, order = order.id, reason, "not restored");
                }
            }
            let Some(update) = lock(&book).judge(&order.id, result) else { return };
            let state = ground.shared.state.clone();
            let saved = keep(state, order.clone(), update.clone()).await;
            if let Err(error) = saved {
                // Said all the same: the hub then records the end, and does not repeat the order.
                tracing::error!(database = %order.database, %error, "the end of an order cannot be recorded");
            }
            lock(&book).end(Ended { id: order.id, update });
            news.notify_one();
        });
    }

    /// Says what the hub does not know yet. What cannot be said is said when the hub repeats its order.
    async fn say(&self) {
        let Some(link) = self.ground.shared.board.link() else { return };
        loop {
            let Some(update) = lock(&self.book).unsaid() else { return };
            let id = update.id.clone();
            if link.send(Message::OrderUpdate(update)).await.is_err() {
                lock(&self.book).not_said(&id);
                return;
            }
        }
    }
}

/// Carries an order out, from the beginning again when the stream to the hub broke meanwhile: what failed then has changed
/// nothing, and the reason is gone when the hub is back.
async fn carry_out(
    ground: &Ground,
    order: &Order,
    tell: restore::Tell<'_>,
    cancel: &CancellationToken,
) -> Result<Outcome, Failure> {
    let mut backoff = Backoff::new(AGAIN_MIN, AGAIN_MAX);
    let mut tries = 1;
    loop {
        let link = ground.shared.board.link();
        let result = Box::pin(restore::execute(ground, order, tell, cancel)).await;
        let Err(Failure::Failed(reason)) = &result else { return result };
        let broke = match link {
            // What was asked over it may fail a moment before it is known to be broken.
            Some(link) => tokio::time::timeout(NOTICED, link.closed()).await.is_ok(),
            None => true,
        };
        if !broke || tries >= TRIES {
            return result;
        }
        tries += 1;
        tracing::info!(database = %order.database, order = order.id, reason, "the hub went away; the order waits for it");
        let back = async {
            tokio::time::sleep(backoff.next_delay()).await;
            ground.shared.board.linked().await;
        };
        tokio::select! {
            () = cancel.cancelled() => return Err(Failure::Cancelled),
            () = back => {}
        }
    }
}

async fn keep(state: Arc<StateDir>, order: Order, update: OrderUpdate) -> std::io::Result<()> {
    tokio::task::spawn_blocking(move || {
        let disk: Arc<dyn Disk> = state.disk();
        ends::write(&state, &*disk, &order, &update)
    })
    .await
    .map_err(std::io::Error::other)?
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
