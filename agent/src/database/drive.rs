//! An attached database between hub and file: opens it at the hub, takes the steps that `ship::resume` names, follows, and
//! decides what every kind of end means.

use super::desk::Call;
use super::follower::{Follower, Target};
use super::pace::Pace;
use super::spooling::Lost;
use super::{Attached, Database, FileId, State, WalWatch};
use crate::capture::{CaptureError, Standing};
use crate::ship::inbox::{Mail, Opened, Refusal, Staging};
use crate::ship::link::{Closed, Link};
use crate::ship::resume::{Situation, Step, decide};
use crate::watchdog;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedRwLockReadGuard;
use tokio::time::Instant;
use walhub_common::backoff::Backoff;
use walhub_common::{Pos, Txid};
use walhub_proto::convert::position_to_wire;
use walhub_proto::v1::replicate_request::Message;
use walhub_proto::v1::{CloseDatabase, OpenDatabase, RefusalCode};

/// More steps than this without agreement are a fault on one side.
const MAX_STEPS: u32 = 16;
const REOPEN_MIN: Duration = Duration::from_millis(100);
const REOPEN_MAX: Duration = Duration::from_secs(30);
/// Refusals that the same bytes would meet again wait at least this long.
const REFUSED_MIN: Duration = Duration::from_secs(1);

/// Why an attached database is let go, or why a stretch of work with it ended.
#[derive(Debug)]
pub(super) enum End {
    /// The link came or went.
    Link,
    /// The hub wants it opened again.
    Refused(Refusal),
    /// Something did not work; tried again without letting go.
    Later(String),
    /// The pause is over.
    Again,
    /// There is no place in the WAL to hold on to, and no hub to find one with: the application gets its checkpoints
    /// back.
    Adrift,
    /// The path leads to another file now, or is about to.
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

/// What a failed capture call means. After most of them the capture knows by itself where it stands; after the rest it
/// is attached anew.
pub(super) fn failed(error: CaptureError) -> End {
    match error {
        CaptureError::Moved => End::Replaced,
        CaptureError::OtherHistory { .. } => End::Fork(error.to_string()),
        CaptureError::Broken(_)
        | CaptureError::Torn
        | CaptureError::Yielded
        | CaptureError::Ltx(_)
        | CaptureError::NoDelta { .. }
        | CaptureError::NoPageMap
        | CaptureError::RollForward { .. }
        | CaptureError::Sink(_) => End::Later(error.to_string()),
        CaptureError::Sqlite(_) | CaptureError::State(_) | CaptureError::Staged(_) => {
            End::Failed(error.to_string())
        }
    }
}

/// An attached database.
pub(super) struct Driver<'a> {
    pub(super) db: &'a Database,
    /// Its name, for the watchdog.
    pub(super) watched: Arc<str>,
    follower: Option<Follower>,
    id: FileId,
    /// Held until the follower has let go.
    _file: OwnedRwLockReadGuard<()>,
    /// Where the hub stands once everything sent has arrived.
    pub(super) hub: Option<Pos>,
    /// The WAL was read to its end since the hub named its position.
    pub(super) exhausted: bool,
    /// What the hub named when the database was opened, until both sides agree.
    named: Option<Txid>,
    /// What the hub keeps of an unfinished first snapshot.
    pub(super) staging: Option<Staging>,
    /// The hub holds images that a first snapshot may be compared with.
    pub(super) images: bool,
    /// Newest buffered transaction that this task knows of.
    pub(super) buffered: Option<Txid>,
    /// The link that was tried last.
    pub(super) link_id: u64,
    /// Both sides agree, and the handle takes segments.
    pub(super) following: bool,
    reopen: Backoff,
    /// Restore points reported as lost, of transactions on their way to the hub.
    pub(super) told_lost: Lost,
    /// A write that no commit was seen for yet.
    pub(super) unexplained: Option<Instant>,
    /// How often the log is read.
    pub(super) pace: Pace,
    pub(super) wal_watch: WalWatch,
    /// Calls that wait until the log was read to its end.
    pub(super) asked: VecDeque<Call>,
    /// End of the pause that an operator asked for.
    pub(super) paused_until: Option<Instant>,
    /// A reader outside keeps the log from beginning anew, and that was said.
    pub(super) held_back: bool,
}

impl<'a> Driver<'a> {
    pub(super) fn new(db: &'a Database, attached: Attached) -> Self {
        let Attached { follower, id, wal_watch, file } = attached;
        Self {
            db,
            watched: db.name.as_str().into(),
            follower: Some(follower),
            id,
            _file: file,
            hub: None,
            exhausted: false,
            named: None,
            staging: None,
            images: false,
            buffered: None,
            link_id: 0,
            following: false,
            reopen: Backoff::new(REOPEN_MIN, REOPEN_MAX),
            told_lost: Lost::default(),
            unexplained: None,
            pace: Pace::new(db.shared.pace, Instant::now()),
            wal_watch,
            asked: VecDeque::new(),
            paused_until: None,
            held_back: false,
        }
    }

    /// Works with the hub whenever there is one; returns when the database must be let go.
    pub(super) async fn run(&mut self) -> End {
        let mut not_before = None;
        loop {
            let ended = match self.link() {
                _ if self.paused_until.is_some() => self.paused().await,
                Some(link) if not_before.is_none() => self.online(&link).await,
                _ => self.away(not_before).await,
            };
            let Err(end) = ended;
            tracing::debug!(database = %self.db.name, ?end, "stopped following");
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
                End::Stop => {
                    self.last_pass().await;
                    return End::Stop;
                }
                end => return end,
            };
            self.following = false;
        }
    }

    /// Lets the file go, and says so to the hub if it listens.
    pub(super) async fn detach(mut self) {
        if let Some(link) = self.link().filter(|link| link.id == self.link_id) {
            let close = CloseDatabase { handle: self.db.handle };
            // Without a link the hub knows already.
            let _ = link.try_send(Message::Close(close));
        }
        self.db.report.notice(None);
        let Some(follower) = self.follower.take() else { return };
        let watched = self.watched.clone();
        let detach = move || watchdog::watch(&watched, || follower.let_go());
        let detached = tokio::task::spawn_blocking(detach).await;
        match detached {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                tracing::warn!(database = %self.db.name, error = %e, "the database was not let go cleanly");
            }
            Err(e) => tracing::error!(database = %self.db.name, error = %e, "a bug ended the detach"),
        }
    }

    /// The current link.
    pub(super) fn link(&self) -> Option<Arc<Link>> {
        self.db.shared.board.link().filter(|link| !link.is_closed())
    }

    /// Where segments go over a link.
    pub(super) fn target(&self, link: &Arc<Link>) -> Target {
        Target {
            link: link.clone(),
            inbox: self.db.inbox.clone(),
            budget: self.db.shared.budget.clone(),
            handle: self.db.handle,
            report: self.db.report.clone(),
        }
    }

    /// No link, or a pause: the WAL is the spool, and only its size is looked after.
    async fn away(&mut self, until: Option<Instant>) -> Result<Infallible, End> {
        if until.is_none() {
            self.db.report.enter(State::Offline);
        }
        let budget = self.db.shared.budget.clone();
        loop {
            if self.link().is_some_and(|link| link.id != self.link_id) {
                return Err(End::Link);
            }
            let capture = &self.home().capture;
            let too_long = until.is_none() || capture.wal_bytes() > self.db.shared.wal_limit;
            if too_long && capture.standing() != Standing::Aligned {
                return Err(End::Adrift);
            }
            self.limit_wal(false).await?;
            self.answer_calls_away().await?;
            tokio::select! {
                () = sleep_until(until) => return Err(End::Again),
                // Others follow and need the memory that this one only holds.
                () = budget.pressed() => self.clear_window(),
                mail = self.mail() => { mail?; }
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
            self.limit_wal(false).await?;
        };
        self.opened(&opened).await?;
        let to = self.target(link);
        let mut steps = 0;
        loop {
            let step = decide(&self.situation());
            if step == Step::Follow {
                steps = 0;
                self.told_lost = Lost::default();
                self.drop_unconnected_spool();
                self.resume_spooling();
                if let Some(txid) = self.named.take() {
                    self.acked(txid);
                }
                self.follow(&to).await?;
                continue;
            }
            self.following = false;
            steps += 1;
            if steps > MAX_STEPS {
                return Err(End::Later("the hub and this node do not come to one position".into()));
            }
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
            spool: home.spool.coverage(self.hub),
        }
    }

    async fn opened(&mut self, opened: &Opened) -> Result<(), End> {
        let (ours, theirs) = (self.home().capture.lineage(), opened.lineage);
        if ours != 0 && ours != theirs {
            let text =
                format!("the hub holds lineage {theirs:016x} under this name, this file is {ours:016x}");
            return Err(End::Fork(text));
        }
        if ours != theirs {
            self.blocking(move |f| f.capture.set_lineage(theirs)).await?.map_err(failed)?;
        }
        tracing::debug!(database = %self.db.name, hub = ?opened.position, here = ?self.home().capture.position(), "opened at the hub");
        self.exhausted = false;
        self.hub = opened.position;
        self.named = opened.position.map(|p| p.txid);
        self.buffered = self.named;
        self.staging = opened.staging;
        self.images = opened.images;
        self.db.report.buffered(self.buffered);
        self.db.report.durable(opened.durable);
        Ok(())
    }

    /// The next mail, with what concerns every state done. Cancel-safe.
    pub(super) async fn mail(&mut self) -> Result<Mail, End> {
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
        if mail.stop.is_some() {
            return Err(End::Stop);
        }
        if self.db.desk.file_is_wanted() {
            return Err(End::Replaced);
        }
        if (mail.files || mail.poll) && FileId::of(&self.db.path).ok() != Some(self.id) {
            return Err(End::Replaced);
        }
        // Right here, as waiting is cancelled at will. It takes a moment, once after a writer died at one exact instant, and
        // every application on this database is held up until then, with or without a hub.
        if mail.poll && self.home().capture.is_torn() {
            self.home_mut().capture.mend().map_err(failed)?;
        }
        Ok(mail)
    }

    /// As [`Driver::mail`] while a link is in use.
    pub(super) async fn mail_on(&mut self, link: &Link) -> Result<Mail, End> {
        let mail = self.mail().await?;
        on(link, mail)
    }

    /// Takes the mail that is there, without waiting.
    pub(super) fn look(&mut self, link: &Link) -> Result<(), End> {
        let mail = self.taken()?;
        on(link, mail).map(|_| ())
    }

    pub(super) fn acked(&mut self, txid: Txid) {
        self.home_mut().acked(txid);
        self.buffered = self.buffered.max(Some(txid));
        self.reopen.reset();
        self.db.report.buffered(self.buffered);
        self.account();
    }

    /// Writes down where everything stands.
    pub(super) fn account(&self) {
        let Some(home) = &self.follower else { return };
        let captured = home.capture.position().map(|p| p.txid);
        let spooled = home.spool.bytes();
        let lag_bytes = home.window.unacked_bytes() + spooled;
        self.db.report.progress(captured, home.capture.wal_bytes(), lag_bytes);
        self.db.report.spooled(spooled);
        self.db.report.waiting_since(home.window.oldest().map(|e| e.meta.agent_time_ms));
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
                self.clear_window();
                if let Some(home) = &mut self.follower {
                    home.spool.clear();
                }
            }
        }
        self.trouble(State::Refused, &text);
        Ok(delay.max(REFUSED_MIN))
    }

    pub(super) fn clear_window(&mut self) {
        if let Some(home) = &mut self.follower {
            home.window.clear();
        }
    }

    fn trouble(&self, state: State, text: &str) {
        if self.db.report.trouble(state, text, Some("it is tried again by itself")) {
            tracing::warn!(database = %self.db.name, reason = text, "the database waits");
        }
    }

    /// The result of an operation that sent. When it failed, half a segment may lie at the hub, and mail or link say why.
    pub(super) fn sent<T>(&mut self, result: Result<T, CaptureError>, link: &Link) -> Result<T, End> {
        match result {
            Ok(value) => Ok(value),
            Err(e) => {
                self.following = false;
                self.look(link)?;
                Err(failed(e))
            }
        }
    }

    /// The follower, while no blocking work has it.
    pub(super) fn home(&self) -> &Follower {
        self.follower.as_ref().expect("BUG: the follower is at home")
    }

    /// As [`Driver::home`], to work with it.
    pub(super) fn home_mut(&mut self) -> &mut Follower {
        self.follower.as_mut().expect("BUG: the follower is at home")
    }

    /// Runs blocking work with the follower.
    pub(super) async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Follower) -> T + Send + 'static,
    ) -> Result<T, End> {
        let mut follower = self.follower.take().expect("BUG: the follower is at home");
        let watched = self.watched.clone();
        let done = tokio::task::spawn_blocking(move || {
            let out = watchdog::watch(&watched, || work(&mut follower));
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

fn on(link: &Link, mail: Mail) -> Result<Mail, End> {
    if link.is_closed() {
        return Err(End::Link);
    }
    match mail.refused {
        Some(refusal) if refusal.link == link.id => Err(End::Refused(refusal)),
        _ => Ok(mail),
    }
}

/// Never, without a time.
pub(super) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
