//! An attached database between hub and file: opens it at the hub, takes the steps that `ship::resume` names, follows.

use super::fetch::fetch;
use super::follower::{Follower, Pumped, RollError, Target};
use super::sink::Chunker;
use super::{Database, FileId, State};
use crate::capture::{CaptureError, State as CaptureState};
use crate::ship::inbox::{Mail, Opened, Refusal};
use crate::ship::link::{Closed, Link};
use crate::ship::resume::{Situation, Step, decide};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;
use walhub_common::backoff::Backoff;
use walhub_common::restore::feed;
use walhub_common::{Pos, Txid};
use walhub_proto::convert::position_to_wire;
use walhub_proto::v1::replicate_request::Message;
use walhub_proto::v1::{OpenDatabase, RefusalCode};

/// More steps than this without agreement are a fault on one side.
const MAX_STEPS: u32 = 16;
const REOPEN_MIN: Duration = Duration::from_millis(100);
const REOPEN_MAX: Duration = Duration::from_secs(30);
/// Refusals that the same bytes would meet again wait at least this long.
const REFUSED_MIN: Duration = Duration::from_secs(1);
/// How long the last transactions may take when the agent stops.
const LAST_PASS: Duration = Duration::from_secs(2);
/// The first timed look after a write that brought no news; later ones follow as the time since has grown by a quarter.
const FIRST_LOOK: Duration = Duration::from_millis(1);

/// Why an attached database is let go, or why a stretch of work with it ended.
#[derive(Debug)]
pub(super) enum End {
    /// The link came or went.
    Link,
    /// The hub wants it opened again.
    Refused(Refusal),
    /// The hub could not help; tried again over the same link.
    Later(String),
    /// The pause is over.
    Again,
    /// The path leads to another file now.
    Replaced,
    /// Two histories.
    Fork(String),
    /// The capture cannot go on.
    Failed(String),
    /// The task must end.
    Stop,
}

impl From<Closed> for End {
    fn from(Closed: Closed) -> Self {
        End::Link
    }
}

/// An attached database.
pub(super) struct Driver<'a> {
    db: &'a Database,
    follower: Option<Follower>,
    id: FileId,
    /// Where the hub stands once everything sent has arrived.
    hub: Option<Pos>,
    exhausted: bool,
    /// Newest buffered transaction that this task knows of.
    buffered: Option<Txid>,
    /// The link that was tried last.
    link_id: u64,
    /// The hub takes each transaction as it commits.
    following: bool,
    reopen: Backoff,
    /// A write that no commit was seen for yet.
    unexplained: Option<Instant>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(db: &'a Database, follower: Follower, id: FileId) -> Self {
        Self {
            db,
            follower: Some(follower),
            id,
            hub: None,
            exhausted: false,
            buffered: None,
            link_id: 0,
            following: false,
            reopen: Backoff::new(REOPEN_MIN, REOPEN_MAX),
            unexplained: None,
        }
    }

    /// Works with the hub whenever there is one; returns when the database must be let go.
    pub(super) async fn run(&mut self) -> End {
        let mut not_before = None;
        loop {
            let link = self.db.shared.board.link().filter(|l| !l.is_closed());
            let ended = match link {
                Some(link) if not_before.is_none() => self.online(&link).await,
                _ => self.away(not_before).await,
            };
            let Err(end) = ended;
            if matches!(end, End::Stop) {
                self.last_pass().await;
                return End::Stop;
            }
            self.following = false;
            not_before = match end {
                End::Link | End::Again => None,
                End::Refused(refusal) => match self.refused(refusal) {
                    Ok(pause) => Some(Instant::now() + pause),
                    Err(end) => return end,
                },
                End::Later(text) => {
                    self.trouble(State::Failed, &text);
                    Some(Instant::now() + self.reopen.next_delay().max(REFUSED_MIN))
                }
                end => return end,
            };
        }
    }

    /// Lets the file go.
    pub(super) async fn detach(mut self) {
        let Some(follower) = self.follower.take() else { return };
        let detached = tokio::task::spawn_blocking(move || follower.capture.detach()).await;
        match detached {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                tracing::warn!(database = %self.db.name, error = %e, "the database was not let go cleanly")
            }
            Err(e) => tracing::error!(database = %self.db.name, error = %e, "a bug ended the detach"),
        }
    }

    /// No link, or a pause: the WAL is the spool, and only its size is looked after.
    async fn away(&mut self, until: Option<Instant>) -> Result<Infallible, End> {
        if until.is_none() {
            self.db.report.enter(State::Offline);
        }
        loop {
            self.limit_wal().await?;
            tokio::select! {
                () = sleep_until(until) => return Err(End::Again),
                mail = self.mail() => { mail?; }
            }
            let link = self.db.shared.board.link().filter(|l| !l.is_closed());
            if link.is_some_and(|link| link.id != self.link_id) {
                return Err(End::Link);
            }
        }
    }

    /// Opens the database at the hub and keeps both in agreement until something ends it.
    async fn online(&mut self, link: &Arc<Link>) -> Result<Infallible, End> {
        self.link_id = link.id;
        self.db.report.enter(State::Opening);
        let home = self.home();
        let open = OpenDatabase {
            handle: self.db.handle,
            name: self.db.name.to_string(),
            lineage: home.capture.lineage(),
            position: Some(position_to_wire(home.capture.position())),
            path: self.db.path.to_string_lossy().into_owned(),
        };
        link.send(Message::Open(open)).await?;
        let opened = loop {
            let mail = self.mail_on(link).await?;
            if let Some(opened) = mail.opened.filter(|o| o.link == link.id) {
                break opened;
            }
            self.limit_wal().await?;
        };
        self.opened(&opened).await?;
        let to = Target {
            link: link.clone(),
            inbox: self.db.inbox.clone(),
            budget: self.db.shared.budget.clone(),
            handle: self.db.handle,
        };
        let mut steps = 0;
        loop {
            let step = decide(&self.situation());
            if step == Step::Follow {
                steps = 0;
                self.follow(&to).await?;
                continue;
            }
            steps += 1;
            if steps > MAX_STEPS {
                return Err(End::Later("the hub and this node do not come to one position".into()));
            }
            self.following = false;
            self.db.report.enter(State::CatchingUp);
            tracing::info!(database = %self.db.name, ?step, "catching up");
            self.take(step, &to).await?;
            self.account();
        }
    }

    fn situation(&self) -> Situation {
        let home = self.home();
        Situation {
            standing: home.capture.standing(),
            exhausted: self.exhausted,
            position: home.capture.position(),
            hub: self.hub,
            window: home.window.coverage(self.hub),
        }
    }

    async fn opened(&mut self, opened: &Opened) -> Result<(), End> {
        let ours = self.home().capture.lineage();
        if ours != 0 && ours != opened.lineage {
            let text = format!(
                "the hub holds lineage {:016x} under this name, this file is {ours:016x}",
                opened.lineage
            );
            return Err(End::Fork(text));
        }
        if ours == 0 {
            let lineage = opened.lineage;
            self.blocking(move |f| f.capture.set_lineage(lineage)).await?.map_err(failed)?;
        }
        self.exhausted = false;
        self.hub = opened.position;
        self.buffered = opened.position.map(|p| p.txid);
        self.db.report.buffered(self.buffered);
        self.db.report.durable(opened.durable);
        Ok(())
    }

    /// One step towards agreement.
    async fn take(&mut self, step: Step, to: &Target) -> Result<(), End> {
        match step {
            Step::Follow => Ok(()),
            Step::Fork { ours, hub } => Err(End::Fork(format!(
                "transaction {} is {} here and {} at the hub",
                hub.txid, ours.checksum, hub.checksum
            ))),
            Step::Resend => self.resend(&to.link).await,
            Step::Replay { until } => {
                let inbox = to.inbox.clone();
                let pumped = self.blocking(move |f| f.replay(until, &inbox)).await?.map_err(failed)?;
                self.exhausted = pumped == Pumped::UpToDate;
                self.look(&to.link)
            }
            Step::Delta { since } => {
                let _turn = turn(self.db).await;
                let to = to.clone();
                let had = self.home().capture.position().is_some();
                let link = to.link.clone();
                let sent = self.blocking(move |f| f.delta(since, &to)).await?;
                let meta = self.sent(sent, &link)?;
                if had {
                    self.db.report.lost(meta.range.count() - 1);
                }
                self.hub = Some(Pos { txid: meta.range.max(), checksum: meta.post });
                Ok(())
            }
            Step::RollForward { after, until } => {
                let _turn = turn(self.db).await;
                self.roll_forward(&to.link, after, until).await
            }
            Step::Heal => {
                let _turn = turn(self.db).await;
                let to = to.clone();
                let link = to.link.clone();
                let sent = self.blocking(move |f| f.heal(&to)).await?;
                if let Some(meta) = self.sent(sent, &link)? {
                    self.hub = Some(Pos { txid: meta.range.max(), checksum: meta.post });
                }
                Ok(())
            }
        }
    }

    async fn resend(&mut self, link: &Link) -> Result<(), End> {
        let mut messages = Vec::new();
        if let Some(entries) = self.home().window.after(self.hub) {
            for entry in entries {
                let mut chunker = Chunker::new(self.db.handle, entry.meta);
                let chunks = entry.chunks().unwrap_or_default();
                for (at, data) in chunks.iter().enumerate() {
                    messages.push(chunker.message(data.clone(), at + 1 == chunks.len()));
                }
            }
        }
        for message in messages {
            link.send(message).await?;
        }
        self.hub = self.home().window.end();
        Ok(())
    }

    async fn roll_forward(&mut self, link: &Link, after: Option<Txid>, until: Pos) -> Result<(), End> {
        let (feeder, files) = feed::channel();
        let db = self.db;
        let fetching = fetch(link.channel.clone(), (&db.shared.agent, &db.name), after, until, feeder);
        let applying = self.blocking(move |f| f.roll_forward(files));
        let (fetched, applied) = tokio::join!(fetching, applying);
        let applied = applied?;
        self.look(link)?;
        match (fetched, applied) {
            (_, Err(RollError::Capture(e))) => Err(failed(e)),
            (Err(text), _) => Err(End::Later(format!("the hub could not send what it has: {text}"))),
            (Ok(()), Err(e)) => Err(End::Later(e.to_string())),
            (Ok(()), Ok(())) if self.home().capture.position().is_none_or(|at| at.txid < until.txid) => {
                Err(End::Later("the hub sent less than it has".into()))
            }
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    /// Sends each transaction as it commits. `Ok` when the positions must be compared again.
    async fn follow(&mut self, to: &Target) -> Result<(), End> {
        self.db.report.enter(State::Following);
        self.following = true;
        let mut glance = false;
        loop {
            let before = self.home().capture.position();
            let (target, wants_glance) = (to.clone(), std::mem::take(&mut glance));
            let pumped = self.blocking(move |f| f.pump(&target, wants_glance, false)).await?;
            let pumped = self.sent(pumped, &to.link)?;
            self.hub = self.home().capture.position();
            if self.hub != before {
                self.unexplained = None;
            }
            self.account();
            match pumped {
                Pumped::Lost => return Ok(()),
                Pumped::Slice => self.look(&to.link)?,
                Pumped::NoRoom => {
                    if self.wait_for_room(to).await? {
                        return Ok(());
                    }
                }
                Pumped::UpToDate => glance = self.news(&to.link).await?,
            }
        }
    }

    /// Waits until there may be a new commit. True when it should be looked for closely.
    async fn news(&mut self, link: &Arc<Link>) -> Result<bool, End> {
        loop {
            if self.home().capture.header_moved() {
                return Ok(false);
            }
            let look_at = self.next_look();
            let mail = tokio::select! {
                () = sleep_until(look_at) => continue,
                mail = self.mail_on(link) => mail?,
            };
            if mail.wal {
                self.unexplained = Some(Instant::now());
                return Ok(!self.home().capture.header_moved());
            }
            // A checkpoint that waits for acks; with nothing to checkpoint no thread is woken.
            if (mail.buffered.is_some() || mail.poll) && self.home().capture.state() == CaptureState::Backfill
            {
                self.blocking(|f| f.capture.maintain()).await?.map_err(failed)?;
            }
        }
    }

    /// When to look again after a write that was no commit yet: soon at first, then ever more rarely.
    fn next_look(&mut self) -> Option<Instant> {
        let since = self.unexplained?.elapsed();
        if since > self.db.shared.poll_interval {
            self.unexplained = None;
            return None;
        }
        Some(Instant::now() + (since / 4).max(FIRST_LOOK))
    }

    /// Waits until the budget has room. True when the WAL was squashed meanwhile.
    async fn wait_for_room(&mut self, to: &Target) -> Result<bool, End> {
        loop {
            let freed = to.budget.freed();
            if to.budget.has_room() {
                return Ok(false);
            }
            if self.limit_wal().await? {
                return Ok(true);
            }
            tokio::select! {
                () = freed => {}
                mail = self.mail_on(&to.link) => { mail?; }
            }
        }
    }

    /// Sends what was committed until now and waits a moment for its acks.
    async fn last_pass(&mut self) {
        let Some(link) = self.db.shared.board.link().filter(|l| !l.is_closed()) else { return };
        if !self.following || link.id != self.link_id || self.follower.is_none() {
            return;
        }
        let to = Target {
            link,
            inbox: self.db.inbox.clone(),
            budget: self.db.shared.budget.clone(),
            handle: self.db.handle,
        };
        let deadline = Instant::now() + LAST_PASS;
        let mut done = false;
        while !(done && self.home().window.is_empty()) && Instant::now() < deadline && !to.link.is_closed() {
            if !done {
                let target = to.clone();
                match self.blocking(move |f| f.pump(&target, false, true)).await {
                    Ok(Ok(Pumped::UpToDate)) => done = true,
                    Ok(Ok(Pumped::Slice | Pumped::NoRoom)) => {}
                    Ok(Ok(Pumped::Lost) | Err(_)) | Err(_) => return,
                }
            }
            if let Some(txid) = self.db.inbox.take().buffered {
                self.acked(txid);
            } else if done {
                tokio::time::sleep(FIRST_LOOK).await;
            }
        }
        self.account();
    }

    /// Gives up restore points when the WAL is past its limit; true when it did.
    async fn limit_wal(&mut self) -> Result<bool, End> {
        let home = self.home();
        if home.capture.header_moved() {
            self.db.report.waiting();
        }
        if self.home().capture.wal_bytes() <= self.db.shared.wal_limit {
            return Ok(false);
        }
        let lost = self
            .blocking(|f| {
                let lost = f.capture.skip()?;
                f.capture.maintain()?;
                Ok(lost)
            })
            .await?
            .map_err(failed)?;
        if lost > 0 {
            self.db.report.lost(lost);
            tracing::warn!(database = %self.db.name, restore_points = lost, "the hub was away too long for the WAL limit; the latest state is kept, these restore points are not");
        }
        self.account();
        Ok(lost > 0)
    }

    /// The next mail, with what concerns every state done. Cancel-safe.
    async fn mail(&mut self) -> Result<Mail, End> {
        self.db.inbox.wait().await;
        self.taken()
    }

    fn taken(&mut self) -> Result<Mail, End> {
        let mail = self.db.inbox.take();
        if let Some(txid) = mail.buffered {
            self.acked(txid);
        }
        if mail.durable.is_some() {
            self.db.report.durable(mail.durable);
        }
        if mail.stop {
            return Err(End::Stop);
        }
        if (mail.files || mail.poll) && FileId::of(&self.db.path).ok() != Some(self.id) {
            return Err(End::Replaced);
        }
        Ok(mail)
    }

    /// As [`Driver::mail`] while a link is in use.
    async fn mail_on(&mut self, link: &Link) -> Result<Mail, End> {
        let mail = self.mail().await?;
        on(link, mail)
    }

    /// Takes the mail that is there, without waiting.
    fn look(&mut self, link: &Link) -> Result<(), End> {
        let mail = self.taken()?;
        on(link, mail).map(|_| ())
    }

    fn acked(&mut self, txid: Txid) {
        let home = self.follower.as_mut().expect("BUG: the follower is at home");
        home.acked(txid);
        self.buffered = self.buffered.max(Some(txid));
        self.reopen.reset();
        self.db.report.buffered(self.buffered);
        self.account();
    }

    /// Writes down where everything stands.
    fn account(&self) {
        let Some(home) = &self.follower else { return };
        let report = &self.db.report;
        report.progress(
            home.capture.position().map(|p| p.txid),
            home.capture.wal_bytes(),
            home.window.unacked_bytes(),
        );
        report.waiting_since(home.window.oldest().map(|e| e.meta.agent_time_ms));
    }

    /// What a refusal means: a pause before the next try, or the end.
    fn refused(&mut self, refusal: Refusal) -> Result<Duration, End> {
        let text = format!("the hub refused the database: {}", refusal.message);
        let delay = self.reopen.next_delay();
        match refusal.code {
            RefusalCode::Fork => return Err(End::Fork(refusal.message)),
            RefusalCode::Gap => {
                tracing::info!(database = %self.db.name, reason = refusal.message, "the hub misses a segment; resending");
                return Ok(delay);
            }
            RefusalCode::Busy => {
                self.trouble(State::Refused, &text);
                return Ok(delay);
            }
            // The same bytes would be refused again: they are made anew.
            RefusalCode::Corrupted
            | RefusalCode::Oversized
            | RefusalCode::Malformed
            | RefusalCode::Unspecified => {
                if let Some(home) = &mut self.follower {
                    home.window.clear();
                }
            }
        }
        self.trouble(State::Refused, &text);
        Ok(delay.max(REFUSED_MIN))
    }

    fn trouble(&self, state: State, text: &str) {
        if self.db.report.trouble(state, text, Some("it is tried again by itself")) {
            tracing::warn!(database = %self.db.name, reason = text, "the database waits");
        }
    }

    /// The result of an operation that sent: a sink that failed is looked up in link and mail.
    fn sent<T>(&mut self, result: Result<T, CaptureError>, link: &Link) -> Result<T, End> {
        match result {
            Ok(value) => Ok(value),
            Err(e) => {
                self.look(link)?;
                Err(failed(e))
            }
        }
    }

    fn home(&self) -> &Follower {
        self.follower.as_ref().expect("BUG: the follower is at home")
    }

    /// Runs blocking work with the follower.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Follower) -> T + Send + 'static,
    ) -> Result<T, End> {
        let mut follower = self.follower.take().expect("BUG: the follower is at home");
        let done = tokio::task::spawn_blocking(move || {
            let out = work(&mut follower);
            (follower, out)
        });
        match done.await {
            Ok((follower, out)) => {
                self.follower = Some(follower);
                Ok(out)
            }
            Err(died) => Err(End::Failed(format!("a bug ended the capture: {died}"))),
        }
    }
}

/// A turn for long work.
async fn turn(db: &Database) -> SemaphorePermit<'_> {
    db.shared.turns.acquire().await.expect("BUG: turns are never closed")
}

fn on(link: &Link, mail: Mail) -> Result<Mail, End> {
    if link.is_closed() {
        return Err(End::Link);
    }
    match mail.refused {
        Some(refusal) if refusal.link == link.id => Err(End::Refused(refusal)),
        _ => Ok(mail),
    }
}

/// What a failed capture call means. After most of them the capture knows by itself where it stands; after the rest it
/// is attached anew.
fn failed(error: CaptureError) -> End {
    match error {
        CaptureError::Moved => End::Replaced,
        CaptureError::Broken(_)
        | CaptureError::Torn
        | CaptureError::Ltx(_)
        | CaptureError::NoDelta { .. }
        | CaptureError::NoPageMap
        | CaptureError::RollForward { .. }
        | CaptureError::Sink(_) => End::Later(error.to_string()),
        CaptureError::Sqlite(_) | CaptureError::State(_) => End::Failed(error.to_string()),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
