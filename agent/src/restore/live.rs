//! A database that applications have open, brought back as its newest transaction.
//!
//! ```text
//! sync (everything committed is at the hub) ▸ page checksums of the point ▸ survey, which pins the live state
//!     ▸ fetch what differs ▸ checks ▸ replace under the writer lock ▸ the transaction is at the hub
//!          ▲                            │ the pinned state is gone (the log had to be copied): survey again
//!          └────────────────────────────┘
//! ```
//! Until the last step nothing is changed, and following goes on.

use super::fetch::{Fetcher, bug};
use super::{Failure, Ground, Order, Outcome, Phase, Tell};
use crate::capture::{NotReplaced, Replaced, Surveyed, Wanted};
use crate::database::{Ask, Contact, Done, Level, Refused};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walhub_common::Txid;
use walhub_common::sql::{self, Announce, Check, Reader};
use walhub_proto::v1::DatabaseRef;

/// What was committed before must be at the hub within this time.
pub(super) const SYNC_PATIENCE: Duration = Duration::from_secs(300);
/// A writer of the application may hold its lock for so long altogether.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// One try: between two, what is committed is read.
const TRY: Duration = Duration::from_millis(500);
/// Refusals of the database's task that pass by themselves, how long that may take, and the time between two tries.
pub(super) const PASSING: [&str; 3] = ["hub-away", "not-followed", "stopping"];
const AGAIN_PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(200);
/// Surveys in a row that the application's writing made worthless.
const ROUNDS: u32 = 6;
/// The new transaction is waited for; it gets to the hub all the same.
pub(super) const SHIP_PATIENCE: Duration = Duration::from_secs(60);

/// See [`super::execute`].
pub(super) async fn bring_back(
    ground: &Ground,
    order: &Order,
    tell: Tell<'_>,
    cancel: &CancellationToken,
) -> Result<Outcome, Failure> {
    let contact = ground.public.find(order.database.as_str()).map_err(refused)?;
    let Ok(_one) = contact.desk.restoring.try_lock() else {
        return Err(Failure::Failed(format!("another restore of {} is running; wait for it", contact.name)));
    };
    let folder = ground.shared.state.folder_of(&contact.name).join("restore");
    let trial = Arc::new(Trial(folder.join("trial.db")));
    let checks = order.checks.iter().map(|check| check.parse()).collect::<Result<_, sql::NoCheck>>();
    let checks = checks.map_err(|why| Failure::Failed(format!("{why}; nothing was changed")))?;
    let mut work = Work { ground, order, tell, contact: &contact, checks, trial };
    let (wanted, mut fetcher) = unless(cancel, work.prepare()).await?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    for round in 1..=ROUNDS {
        unless(cancel, work.fetch(&wanted, &mut fetcher, round)).await?;
        if !work.check(&wanted, cancel).await? {
            continue;
        }
        if cancel.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        (work.tell)(Phase::Applying, fetcher.bytes, fetcher.bytes);
        match work.replace(&wanted, deadline, cancel).await? {
            Some(replaced) => return work.finish(replaced, fetcher.bytes).await,
            None => {
                tracing::info!(database = %contact.name, round, "the log had to be copied into the file; comparing again")
            }
        }
    }
    Err(Failure::Failed(format!(
        "the application writes more than `wal-limit` between the comparison and the replacement; raise it, or let the \
         application rest for a moment. {} is as it was",
        contact.name
    )))
}

struct Work<'a> {
    ground: &'a Ground,
    order: &'a Order,
    tell: Tell<'a>,
    contact: &'a Contact,
    checks: Vec<Check>,
    trial: Arc<Trial>,
}

/// The state asked for as a file, for the checks. Removed when dropped.
struct Trial(PathBuf);

impl Trial {
    fn create(&self) -> io::Result<File> {
        if let Some(folder) = self.0.parent() {
            fs::create_dir_all(folder)?;
        }
        File::options().read(true).write(true).create(true).truncate(true).open(&self.0)
    }

    fn remove(&self) {
        // It may never have been made.
        let _ = fs::remove_file(&self.0);
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Work<'_> {
    /// Everything that is committed is at the hub, and the checksums of the point are here.
    async fn prepare(&mut self) -> Result<(Arc<Wanted>, Fetcher), Failure> {
        (self.tell)(Phase::Fetching, 0, 0);
        let synced = async {
            let Done::Captured(txid) = self.contact.ask(Ask::Sync).await.map_err(refused)? else {
                return Err(odd());
            };
            if let Some(txid) = txid {
                self.contact.report.reached(txid, Level::Buffered).await;
            }
            Ok(())
        };
        tokio::time::timeout(SYNC_PATIENCE, synced).await.map_err(|_| {
            Failure::Failed(
                "what is committed now is not at the hub in time, and would not be a restore point".into(),
            )
        })??;
        let link = self.ground.shared.board.link();
        let link = link.ok_or_else(|| Failure::Failed("the hub cannot be reached".into()))?;
        let database =
            DatabaseRef { agent: self.ground.shared.agent.to_string(), name: self.contact.name.to_string() };
        let mut fetcher =
            Fetcher::new(link.channel.clone(), database, self.order.until, self.order.max_bytes_per_second);
        let folder = self.ground.shared.state.folder_of(&self.contact.name).join("restore");
        let wanted = fetcher.wanted(folder).await?;
        Ok((wanted, fetcher))
    }

    /// Asks the database's task; again when it had to let go of the hub or of its place meanwhile, which passes by itself.
    async fn ask(&self, what: impl Fn() -> Ask) -> Result<Done, Failure> {
        let deadline = Instant::now() + AGAIN_PATIENCE;
        loop {
            match self.contact.ask(what()).await {
                Err(passing) if PASSING.contains(&passing.code) && Instant::now() < deadline => {
                    tokio::time::sleep(AGAIN).await;
                }
                answer => return answer.map_err(refused),
            }
        }
    }

    /// One survey, and the pages that it misses.
    async fn fetch(&self, wanted: &Arc<Wanted>, fetcher: &mut Fetcher, round: u32) -> Result<(), Failure> {
        let Done::Surveyed(surveyed) = self.ask(|| Ask::Survey(wanted.clone())).await? else {
            return Err(odd());
        };
        let missing = surveyed.settled.pages() - surveyed.settled.len();
        tracing::info!(
            database = %self.contact.name, until = %self.order.until, round, differing = surveyed.differing, missing,
            rotten = surveyed.rotten, "compared with the point asked for"
        );
        if surveyed.rotten > 0 {
            tracing::warn!(database = %self.contact.name, pages = surveyed.rotten, "pages on this disk are not what was written to them; they are replaced");
        }
        let page_bytes = u64::from(wanted.page_size().get());
        let trial = if self.checks.is_empty() { 0 } else { u64::from(wanted.commit()) * page_bytes };
        let scratch = u64::from(missing) * page_bytes + trial;
        let (path, state) =
            (self.contact.path.clone(), self.ground.shared.state.folder_of(&self.contact.name));
        let room = tokio::task::spawn_blocking({
            let surveyed = surveyed.clone();
            move || room(&surveyed, scratch, &path, &state)
        });
        room.await.map_err(bug)??;
        let tell = |bytes, total| (self.tell)(Phase::Fetching, bytes, total);
        fetcher.missing(wanted, &surveyed.settled, &tell).await
    }

    /// The checks hold of the state asked for. False: survey again.
    async fn check(&self, wanted: &Arc<Wanted>, cancel: &CancellationToken) -> Result<bool, Failure> {
        if self.checks.is_empty() {
            return Ok(true);
        }
        if !unless(cancel, self.assemble(wanted)).await? {
            return Ok(false);
        }
        let (trial, checks) = (self.trial.clone(), self.checks.clone());
        let ask = move |announce: Announce| -> Result<(), String> {
            let opened = Reader::open(&trial.0);
            let reader =
                opened.map_err(|error| format!("SQLite cannot read the restored database: {error}"))?;
            announce.reader(&reader);
            let held = checks.iter().try_for_each(|check| check.run(&reader));
            held.map_err(|unmet| format!("in the restored database {unmet}"))
        };
        let (held, cancelled) = sql::until(ask, cancel.cancelled()).await.map_err(bug)?;
        self.trial.remove();
        match (held, cancelled) {
            (_, Some(())) => Err(Failure::Cancelled),
            (held, None) => held
                .map(|()| true)
                .map_err(|why| Failure::Failed(format!("{why}; the database is as it was"))),
        }
    }

    /// Makes the state asked for as a file. False: survey again.
    async fn assemble(&self, wanted: &Arc<Wanted>) -> Result<bool, Failure> {
        let trial = self.trial.clone();
        let made = tokio::task::spawn_blocking(move || trial.create()).await.map_err(bug)?;
        let file = made.map_err(|e| {
            Failure::Failed(format!("{}: {e}; the database is as it was", self.trial.0.display()))
        })?;
        let file = Arc::new(file);
        let ask = || Ask::Assemble(wanted.clone(), file.clone());
        let Done::Assembled(assembled) = self.ask(ask).await? else {
            return Err(odd());
        };
        match assembled {
            Ok(()) => Ok(true),
            Err(NotReplaced::Overtaken) => Ok(false),
            Err(why) => Err(not_replaced(&why)),
        }
    }

    /// `None`: survey again.
    async fn replace(
        &self,
        wanted: &Arc<Wanted>,
        deadline: Instant,
        cancel: &CancellationToken,
    ) -> Result<Option<Replaced>, Failure> {
        loop {
            let ask = || Ask::Replace(wanted.clone(), TRY);
            let Done::Replaced(done) = self.ask(ask).await? else {
                return Err(odd());
            };
            let why = match done {
                Ok(replaced) => return Ok(Some(replaced)),
                Err(NotReplaced::Overtaken) => return Ok(None),
                Err(why @ (NotReplaced::WriterBusy | NotReplaced::Behind(_)))
                    if Instant::now() < deadline =>
                {
                    why
                }
                Err(why) => return Err(not_replaced(&why)),
            };
            if cancel.is_cancelled() {
                return Err(Failure::Cancelled);
            }
            tracing::debug!(database = %self.contact.name, %why, "trying again");
        }
    }

    async fn finish(&self, replaced: Replaced, bytes: u64) -> Result<Outcome, Failure> {
        let Replaced { before, after, pages, proven, held } = replaced;
        let new_txid = after.map(|after| after.txid);
        tracing::info!(
            database = %self.contact.name, until = %self.order.until, before = %before, pages,
            new_txid = new_txid.map(Txid::get), held_ms = held.as_millis(), "brought back in place"
        );
        if !proven {
            let text = format!(
                "BUG: {} was brought back but is not what was asked for; its state before is transaction {}: report this",
                self.contact.name, before.txid
            );
            tracing::error!(database = %self.contact.name, "{text}");
            return Err(Failure::Failed(text));
        }
        if let Some(txid) = new_txid {
            let reached = self.contact.report.reached(txid, Level::Buffered);
            if tokio::time::timeout(SHIP_PATIENCE, reached).await.is_err() {
                tracing::warn!(database = %self.contact.name, txid = txid.get(), "brought back; the hub does not have that transaction yet");
            }
        }
        let safety_txid = Some(before.txid);
        Ok(Outcome { reached: self.order.until, new_txid, safety_txid, bytes, kept: None })
    }
}

/// The log takes every page that differs at once, and the scratch file those that are fetched.
fn room(surveyed: &Surveyed, scratch: u64, path: &Path, state: &Path) -> Result<(), Failure> {
    let here = surveyed.log_bytes + surveyed.file_bytes;
    let folder = path.parent().unwrap_or(path);
    let device = |path: &Path| std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::dev(&m)).ok();
    let shared = device(folder) == device(state);
    let needs =
        [(folder, if shared { here + scratch } else { here }), (state, if shared { 0 } else { scratch })];
    for (folder, needed) in needs {
        let Ok(disk) = rustix::fs::statvfs(folder) else { continue };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < needed {
            return Err(Failure::Failed(format!(
                "{} pages differ, and to bring them back in one transaction takes {} MiB on the disk of {}, which has {} \
                 MiB; make room, or stop the application and restore with `walhub-agent restore --delta`",
                surveyed.differing,
                needed.div_ceil(1 << 20),
                folder.display(),
                free >> 20,
            )));
        }
    }
    Ok(())
}

pub(super) async fn unless<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Failure::Cancelled),
        done = work => done,
    }
}

fn not_replaced(why: &NotReplaced) -> Failure {
    let advice = match why {
        NotReplaced::WriterBusy => "end that transaction, then try again",
        NotReplaced::Behind(_) | NotReplaced::Overtaken | NotReplaced::Unaligned => "try again",
        NotReplaced::Unfit(_) => {
            "stop the application and use `hubctl restore --replace`, or on the node `walhub-agent restore --force`"
        }
        NotReplaced::Unproven(..) => "report this",
        NotReplaced::Sqlite(_) => "see whether the disk is full",
    };
    Failure::Failed(format!("{why}; the database is as it was; {advice}"))
}

pub(super) fn refused(refused: Refused) -> Failure {
    let advice = refused.what_to_do.map_or_else(String::new, |what| format!("; {what}"));
    Failure::Failed(format!("{}{advice}", refused.message))
}

fn odd() -> Failure {
    Failure::Failed("BUG: the answer to something else; report this".into())
}
