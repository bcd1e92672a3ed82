//! What the world tells one database task: a coalescing letter box that never blocks a sender and never grows.
//!
//! File events, acks and answers of the hub come from tasks that serve every database, so none of them may wait for one
//! slow database. All of it can be merged: acks are cumulative, a wake-up is a flag, and only the newest answer counts.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use walhub_common::{PageSize, Pos, Txid};
use walhub_proto::v1::RefusalCode;

/// The hub's answer to an `OpenDatabase`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The link it came over.
    pub link: u64,
    /// Lineage of the hub's history.
    pub lineage: u64,
    /// The hub's buffered position.
    pub position: Option<Pos>,
    /// Newest durable transaction.
    pub durable: Option<Txid>,
    /// Parts of an unfinished first snapshot.
    pub staging: Option<Staging>,
    /// It holds images that a first snapshot may be compared with.
    pub images: bool,
}

/// What the hub keeps of an unfinished first snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Staging {
    /// Number of the next part.
    pub next_part: u64,
    /// Bytes per page.
    pub page_size: PageSize,
    /// Pages of another database are among them.
    pub adopted: bool,
}

/// The hub takes no more segments of this database until it is opened again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The link it came over.
    pub link: u64,
    /// Why.
    pub code: RefusalCode,
    /// Why, for people.
    pub message: String,
}

/// Everything that came since the last look.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mail {
    /// The `-wal` file was written.
    pub wal: bool,
    /// Something about the files changed: created, replaced, deleted, permissions.
    pub files: bool,
    /// Time for the slow poll.
    pub poll: bool,
    /// The link came or went.
    pub link: bool,
    /// Somebody on this node called.
    pub asked: bool,
    /// The database was opened at the hub.
    pub opened: Option<Opened>,
    /// The hub refused it.
    pub refused: Option<Refusal>,
    /// Newest transaction acked as buffered.
    pub buffered: Option<Txid>,
    /// Newest transaction acked as durable.
    pub durable: Option<Txid>,
    /// Detach and end; since when.
    pub stop: Option<Instant>,
}

/// How long a stop lets the last transactions travel.
pub const LAST_PASS: Duration = Duration::from_secs(2);

/// When a blocking operation gives up before its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// As soon as the task must stop: what takes long can be done again.
    None,
    /// [`LAST_PASS`] after that.
    LastPass,
}

/// The letter box.
#[derive(Debug, Default)]
pub struct Inbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

impl Inbox {
    /// Merges something into the mail and wakes the task.
    pub fn post(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut self.lock());
        self.arrived.notify_one();
    }

    /// Waits until there is mail. Cancel-safe: nothing is lost when the wait is given up.
    pub async fn wait(&self) {
        while *self.lock() == Mail::default() {
            self.arrived.notified().await;
        }
    }

    /// Takes what is there; a stop stays visible.
    pub fn take(&self) -> Mail {
        let mut mail = self.lock();
        let taken = std::mem::take(&mut *mail);
        mail.stop = taken.stop;
        taken
    }

    /// Detach and end.
    pub fn stop(&self) {
        self.post(|mail| {
            mail.stop.get_or_insert_with(Instant::now);
        });
    }

    /// True when a blocking operation should give up: the task must stop, or the hub ignores what comes over `link`.
    pub fn interrupts(&self, link: u64, patience: Patience) -> bool {
        let mail = self.lock();
        let stopped = mail.stop.is_some_and(|since| match patience {
            Patience::None => true,
            Patience::LastPass => since.elapsed() >= LAST_PASS,
        });
        stopped || mail.refused.as_ref().is_some_and(|refusal| refusal.link == link)
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn mail_is_merged_and_taken_once() {
        let inbox = Inbox::default();
        inbox.post(|m| m.wal = true);
        inbox.post(|m| m.buffered = m.buffered.max(Txid::new(7)));
        inbox.post(|m| m.buffered = m.buffered.max(Txid::new(5)));
        inbox.wait().await;
        let mail = inbox.take();
        assert_eq!(mail, Mail { wal: true, buffered: Txid::new(7), ..Mail::default() });
        assert_eq!(inbox.take(), Mail::default());
    }

    #[tokio::test]
    async fn a_stop_is_never_taken_away() {
        let inbox = Inbox::default();
        inbox.stop();
        assert!(inbox.take().stop.is_some());
        inbox.wait().await;
        assert!(inbox.take().stop.is_some());
    }

    #[test]
    fn a_stop_interrupts_long_work_at_once_and_the_last_transactions_later() {
        let inbox = Inbox::default();
        inbox.stop();
        assert!(inbox.interrupts(1, Patience::None));
        assert!(!inbox.interrupts(1, Patience::LastPass));
        inbox.post(|mail| mail.stop = Instant::now().checked_sub(LAST_PASS));
        assert!(inbox.interrupts(1, Patience::LastPass));
    }

    #[test]
    fn a_refusal_interrupts_what_goes_over_its_own_link() {
        let inbox = Inbox::default();
        let refusal = Refusal { link: 3, code: RefusalCode::Gap, message: String::new() };
        inbox.post(|mail| mail.refused = Some(refusal));
        assert!(inbox.interrupts(3, Patience::LastPass));
        assert!(!inbox.interrupts(4, Patience::None));
    }
}
