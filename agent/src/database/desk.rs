//! What people and programs on this node ask of one database: a small queue between the local socket and the database's
//! task. A call is answered once; a call whose asker went away is dropped.

use super::report::Report;
use crate::capture::{Checkpointed, NotReplaced, Replaced, Surveyed, Wanted};
use crate::ship::inbox::Inbox;
use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, oneshot};
use walhub_common::{DatabaseName, Txid};

/// Calls that may wait for one database.
const MAX_CALLS: usize = 64;

/// What is asked.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Read everything that is committed now, and say up to which transaction that is.
    Sync,
    /// Checkpoint now.
    Checkpoint {
        /// Also cut the log to nothing.
        shrink: bool,
    },
    /// Give the application its checkpoints back for this time.
    Pause(Duration),
    /// Take them again.
    Resume,
    /// Compare the live state with this one, and keep it readable until then.
    Survey(Arc<Wanted>),
    /// Write the whole of this state, which was compared, into this empty file.
    Assemble(Arc<Wanted>, Arc<File>),
    /// Make this state the newest transaction, if the writer lock can be had within the time.
    Replace(Arc<Wanted>, Duration),
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum Done {
    /// Everything that was committed when it was asked is in the transactions up to here; `None`: there is none.
    Captured(Option<Txid>),
    /// A checkpoint.
    Checkpointed(Checkpointed),
    /// Until then, Unix milliseconds.
    Paused(i64),
    /// It follows again.
    Resumed {
        /// False when it was not paused.
        was_paused: bool,
    },
    /// How it differs.
    Surveyed(Surveyed),
    /// It is written, or why not.
    Assembled(Result<(), NotReplaced>),
    /// It is replaced, or why not.
    Replaced(Result<Replaced, NotReplaced>),
}

/// Why nothing came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// What to do.
    pub what_to_do: Option<String>,
}

impl Refused {
    /// A refusal.
    pub fn new(code: &'static str, message: impl Into<String>, what_to_do: &str) -> Refused {
        Refused { code, message: message.into(), what_to_do: Some(what_to_do.to_owned()) }
    }
}

/// One call.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub ask: Ask,
    reply: oneshot::Sender<Result<Done, Refused>>,
}

impl Call {
    /// Answers it.
    pub fn answer(self, answer: Result<Done, Refused>) {
        // An asker that went away wants no answer.
        let _ = self.reply.send(answer);
    }

    /// True when nobody waits for the answer.
    pub fn is_dropped(&self) -> bool {
        self.reply.is_closed()
    }
}

/// The calls of one database.
#[derive(Debug, Default)]
pub struct Desk {
    calls: Mutex<VecDeque<Call>>,
    /// Held by the one restore of this database that runs.
    pub restoring: tokio::sync::Mutex<()>,
    /// Whoever has the file open in this process: the task shares it with nobody.
    pub(super) file: Arc<RwLock<()>>,
    /// The task is to let go of the file.
    wanted: AtomicUsize,
}

/// The file of a database, for its owner alone: its task has let go, and takes hold again when this is dropped.
#[derive(Debug)]
pub struct Taken {
    _wish: Wish,
    _file: OwnedRwLockWriteGuard<()>,
}

/// Somebody wants the file.
#[derive(Debug)]
struct Wish {
    desk: Arc<Desk>,
    inbox: Arc<Inbox>,
}

impl Drop for Wish {
    fn drop(&mut self) {
        self.desk.wanted.fetch_sub(1, Ordering::AcqRel);
        // Whoever waits for the file to appear looks.
        self.inbox.post(|mail| mail.files = true);
    }
}

impl Desk {
    /// Everything that waits, oldest first.
    pub fn take(&self) -> VecDeque<Call> {
        std::mem::take(&mut *self.lock())
    }

    /// True when somebody waits for a pause, which ends work that takes long.
    pub fn wants_pause(&self) -> bool {
        self.lock().iter().any(|call| matches!(call.ask, Ask::Pause(_)) && !call.is_dropped())
    }

    /// True when the task is to let go of the file.
    pub(super) fn file_is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire) > 0
    }

    /// Refuses everything that waits.
    pub fn refuse(&self, refused: &Refused) {
        self.take().into_iter().for_each(|call| call.answer(Err(refused.clone())));
    }

    fn put(&self, call: Call) -> Result<(), Call> {
        let mut calls = self.lock();
        calls.retain(|call| !call.is_dropped());
        if calls.len() >= MAX_CALLS {
            return Err(call);
        }
        calls.push_back(call);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A database as others reach it.
#[derive(Clone, Debug)]
pub struct Contact {
    /// Name at the hub.
    pub name: DatabaseName,
    /// The file.
    pub path: PathBuf,
    /// What it tells about itself.
    pub report: Arc<Report>,
    /// Its letters.
    pub inbox: Arc<Inbox>,
    /// Its calls.
    pub desk: Arc<Desk>,
}

impl Contact {
    /// The file for the caller alone. Waits until the task has let go, which saves what it has; giving up is harmless.
    pub async fn take_file(&self) -> Taken {
        self.desk.wanted.fetch_add(1, Ordering::AcqRel);
        let wish = Wish { desk: self.desk.clone(), inbox: self.inbox.clone() };
        self.inbox.post(|mail| mail.asked = true);
        let file = self.desk.file.clone().write_owned().await;
        Taken { _wish: wish, _file: file }
    }

    /// Asks, and waits for the answer for as long as the caller wants to.
    pub async fn ask(&self, ask: Ask) -> Result<Done, Refused> {
        let (reply, answer) = oneshot::channel();
        if self.desk.put(Call { ask, reply }).is_err() {
            return Err(Refused::new("busy", "too many calls wait for this database", "try again later"));
        }
        self.inbox.post(|mail| mail.asked = true);
        answer.await.unwrap_or_else(|_| {
            Err(Refused::new("stopping", "the database was let go before it could answer", "try again"))
        })
    }
}
