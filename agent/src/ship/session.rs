//! The node's one Replicate stream: hello, welcome, then letters to the databases until it breaks; and again.
//!
//! Invariants:
//! - at most one stream at a time; its [`Link`] is closed before the next connection is tried;
//! - this task never waits for a database: it posts into inboxes;
//! - every kind of failure is logged once when it begins, not at every retry.
//!
//! Non-goals: what is sent for a database (the database tasks decide), and in which order.

use super::connect::{DialError, HubAddress, status_reason};
use super::inbox::{Inbox, Opened, Refusal, Staging};
use super::link::{Link, greet};
use super::throttle::{UploadLimit, throttled};
use crate::orders;
use crate::state_dir::StateDir;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Code, Status, Streaming};
use walhub_common::backoff::Backoff;
use walhub_common::limits::MAX_MESSAGE_BYTES;
use walhub_common::task::TaskGroup;
use walhub_common::{PageSize, Txid};
use walhub_proto::convert::{WireError, position_from_wire};
use walhub_proto::v1::replicate_request::Message as Request;
use walhub_proto::v1::replicate_response::Message as Response;
use walhub_proto::v1::replication_service_client::ReplicationServiceClient;
use walhub_proto::v1::{self, AckLevel, Hello, RefusalCode, Welcome};

/// This file is version 1 of the protocol.
const PROTOCOL_VERSION: u32 = 1;
/// How long the hub may take to welcome us.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A stream that lived this long was a success: the next failure starts with short delays again. Short, so that a hub
/// that is restarted a few times in a row has its agents back at once each time.
const STABLE: Duration = Duration::from_secs(1);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The hub ended the stream with a status.
    #[error("{}", refusal_text(*.code, .reason))]
    Status {
        /// Its code.
        code: Code,
        /// Its text, or the reason behind it.
        reason: String,
    },
    /// The hub closed the stream without a status: it is shutting down.
    #[error("the hub closed the stream")]
    Ended,
    /// No welcome in time.
    #[error("the hub did not answer the hello within {} s", WELCOME_TIMEOUT.as_secs())]
    NoWelcome,
    /// The hub broke the protocol.
    #[error("the hub sent something this agent does not understand: {0}")]
    Protocol(String),
    /// The epoch could not be stored.
    #[error("the state folder cannot be written: {0}")]
    State(std::io::Error),
}

fn refusal_text(code: Code, reason: &str) -> String {
    match code {
        Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated => {
            format!("the hub refused this node: {reason}")
        }
        Code::Aborted => format!("the hub ended the stream for a newer one of this node: {reason}"),
        Code::Unimplemented => format!("the server is no walhub hub, or an older one: {reason}"),
        Code::Unavailable | Code::Cancelled | Code::Unknown => reason.to_owned(),
        code => format!("the hub ended the stream ({code:?}): {reason}"),
    }
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        SessionError::Status { code: status.code(), reason: status_reason(&status) }
    }
}

impl From<WireError> for SessionError {
    fn from(error: WireError) -> Self {
        SessionError::Protocol(error.to_string())
    }
}

/// How the link is doing, for people.
#[derive(Clone, Debug, Default)]
pub struct LinkStatus {
    /// True between welcome and break.
    pub connected: bool,
    /// Version of the hub, once welcomed.
    pub hub_version: Option<String>,
    /// Since when it has been as it is, Unix milliseconds.
    pub since_ms: i64,
    /// Why there is no link, or why the last one ended.
    pub last_error: Option<String>,
}

/// Letter boxes of the databases by handle, and the current link: what database tasks and the session share.
#[derive(Debug)]
pub struct Switchboard {
    inboxes: Mutex<HashMap<u32, Arc<Inbox>>>,
    link: watch::Sender<Option<Arc<Link>>>,
    status: Mutex<LinkStatus>,
}

impl Default for Switchboard {
    fn default() -> Self {
        Self {
            inboxes: Mutex::default(),
            link: watch::Sender::new(None),
            status: Mutex::new(LinkStatus {
                since_ms: walhub_common::clock::now_ms(),
                ..LinkStatus::default()
            }),
        }
    }
}

impl Switchboard {
    /// Routes what the hub says about `handle` to `inbox`.
    pub fn register(&self, handle: u32, inbox: Arc<Inbox>) {
        self.inboxes().insert(handle, inbox);
    }

    /// Ends the routing.
    pub fn unregister(&self, handle: u32) {
        self.inboxes().remove(&handle);
    }

    /// The current stream.
    pub fn link(&self) -> Option<Arc<Link>> {
        self.link.borrow().clone()
    }

    /// Waits until there is a stream.
    pub async fn linked(&self) {
        // The sender lives as long as this does.
        let _ = self.link.subscribe().wait_for(Option::is_some).await;
    }

    /// How the link is doing.
    pub fn status(&self) -> LinkStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Wakes every database, for the slow poll and after lost events.
    pub fn post_all(&self, change: impl Fn(&mut super::inbox::Mail)) {
        for inbox in self.inboxes().values() {
            inbox.post(&change);
        }
    }

    fn inboxes(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Arc<Inbox>>> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, link: Option<Arc<Link>>) {
        self.link.send_replace(link);
        self.post_all(|mail| mail.link = true);
    }

    fn set_status(&self, change: impl FnOnce(&mut LinkStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Keeps a stream open.
#[derive(Debug)]
pub struct Session {
    hub: HubAddress,
    limit: Option<UploadLimit>,
    state: Arc<StateDir>,
    board: Arc<Switchboard>,
    orders: Arc<orders::Inbox>,
    instance: [u8; 16],
    streams: u64,
    logged: Option<String>,
}

impl Session {
    /// A session that connects when [`Session::run`] does.
    pub fn new(
        hub: HubAddress,
        limit: Option<UploadLimit>,
        state: Arc<StateDir>,
        board: Arc<Switchboard>,
        orders: Arc<orders::Inbox>,
    ) -> Self {
        Self { hub, limit, state, board, orders, instance: rand::random(), streams: 0, logged: None }
    }

    /// Connects, serves, reconnects; ends with the group that it is a task of.
    pub async fn run(mut self, group: TaskGroup) {
        let token = group.token();
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let begun = tokio::time::Instant::now();
            let ended = tokio::select! {
                () = token.cancelled() => None,
                ended = self.stream(&group) => Some(ended),
            };
            if let Some(link) = self.board.link() {
                link.close();
                self.board.publish(None);
            }
            let Some(error) = ended else { return };
            let was_open = self.board.status().connected;
            if was_open && begun.elapsed() >= STABLE {
                backoff.reset();
            }
            self.report(&error);
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// One stream from connect to break.
    async fn stream(&mut self, group: &TaskGroup) -> SessionError {
        match self.try_stream(group).await {
            Ok(()) => SessionError::Ended,
            Err(error) => error,
        }
    }

    async fn try_stream(&mut self, group: &TaskGroup) -> Result<(), SessionError> {
        let channel = self.hub.connect().await?;
        let (tx, rx, room) = Link::queue(self.limit);
        let limit = self.limit;
        let epoch = self.state.epoch();
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            epoch,
            instance_id: self.instance.to_vec().into(),
            takes_orders: true,
        };
        greet(&tx, &room, Request::Hello(hello)).await.map_err(|_| SessionError::Ended)?;
        let mut client = ReplicationServiceClient::new(channel.clone())
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let opening = async {
            let mut answers = client.replicate(throttled(rx, limit)).await?.into_inner();
            match answers.message().await?.and_then(|m| m.message) {
                Some(Response::Welcome(welcome)) => Ok((welcome, answers)),
                Some(_) => Err(SessionError::Protocol("no welcome first".into())),
                None => Err(SessionError::Ended),
            }
        };
        let (welcome, answers) =
            tokio::time::timeout(WELCOME_TIMEOUT, opening).await.unwrap_or(Err(SessionError::NoWelcome))?;
        self.welcomed(epoch, &welcome, group).await?;
        self.streams += 1;
        let most = limit.map_or(usize::MAX, UploadLimit::max_chunk);
        let max_chunk = most.min(welcome.max_chunk_bytes as usize);
        let link = Arc::new(Link::new(self.streams, max_chunk, channel, tx, room));
        self.board.publish(Some(link));
        self.route(answers).await
    }

    async fn welcomed(
        &mut self,
        sent: u64,
        welcome: &Welcome,
        group: &TaskGroup,
    ) -> Result<(), SessionError> {
        if welcome.epoch != sent {
            let state = self.state.clone();
            let epoch = welcome.epoch;
            // Not given up half done when the agent stops meanwhile.
            let adopted = group.spawn_blocking(move || state.adopt_epoch(epoch));
            adopted.await.unwrap_or_else(|e| Err(std::io::Error::other(e))).map_err(SessionError::State)?;
        }
        self.logged = None;
        self.board.set_status(|status| {
            *status = LinkStatus {
                connected: true,
                hub_version: Some(welcome.hub_version.clone()),
                since_ms: walhub_common::clock::now_ms(),
                last_error: status.last_error.take(),
            };
        });
        tracing::info!(hub = self.hub.address, hub_version = welcome.hub_version, "connected to the hub");
        Ok(())
    }

    async fn route(&self, mut answers: Streaming<v1::ReplicateResponse>) -> Result<(), SessionError> {
        while let Some(answer) = answers.message().await? {
            match answer.message {
                Some(Response::Opened(opened)) => {
                    let letter = Opened {
                        link: self.streams,
                        lineage: opened.lineage,
                        position: position_from_wire(opened.position.as_ref())?,
                        durable: Txid::new(opened.durable_txid),
                        staging: opened.staging.as_ref().and_then(staging),
                        images: opened.images,
                    };
                    self.post(opened.handle, |mail| {
                        mail.opened = Some(letter);
                        mail.durable = mail.durable.max(letter.durable);
                    });
                }
                Some(Response::Ack(ack)) => self.ack(&ack),
                Some(Response::Refused(refused)) => {
                    let letter = Refusal {
                        link: self.streams,
                        code: RefusalCode::try_from(refused.code).unwrap_or(RefusalCode::Unspecified),
                        message: refused.message,
                    };
                    self.post(refused.handle, |mail| mail.refused = Some(letter));
                }
                Some(Response::Order(order)) => self.orders.post(order),
                Some(Response::Welcome(_)) => {
                    return Err(SessionError::Protocol("a second welcome".into()));
                }
                // A newer hub may say more than we understand.
                None => {}
            }
        }
        Ok(())
    }

    fn ack(&self, ack: &v1::Ack) {
        let txid = Txid::new(ack.txid);
        match AckLevel::try_from(ack.level) {
            Ok(AckLevel::Buffered) => self.post(ack.handle, |m| m.buffered = m.buffered.max(txid)),
            Ok(AckLevel::Durable) => self.post(ack.handle, |m| m.durable = m.durable.max(txid)),
            Ok(AckLevel::Staged | AckLevel::Unspecified) | Err(_) => {}
        }
    }

    fn post(&self, handle: u32, change: impl FnOnce(&mut super::inbox::Mail)) {
        let inbox = self.board.inboxes().get(&handle).cloned();
        if let Some(inbox) = inbox {
            inbox.post(change);
        }
    }

    fn report(&mut self, error: &SessionError) {
        let text = error.to_string();
        let was_connected = self.board.status().connected;
        self.board.set_status(|status| {
            if status.connected {
                status.since_ms = walhub_common::clock::now_ms();
            }
            status.connected = false;
            status.last_error = Some(text.clone());
        });
        if was_connected || self.logged.as_ref() != Some(&text) {
            tracing::warn!(hub = self.hub.address, reason = text, "no link to the hub; trying again");
            self.logged = Some(text);
        } else {
            tracing::debug!(hub = self.hub.address, reason = text, "still no link to the hub");
        }
    }
}

/// Parts that cannot be are no parts: the snapshot then begins anew.
pub(crate) fn staging(parts: &v1::Staging) -> Option<Staging> {
    let page_size = PageSize::new(parts.page_size)?;
    Some(Staging { next_part: parts.next_part, page_size, adopted: parts.adopted })
}
