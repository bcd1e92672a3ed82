//! Opening, refusing and closing a database of a session. Whatever ends a handle waits until nothing of it is under way.

use super::super::error::{Refusal, SessionError};
use super::super::handle::{Handle, Incoming, Phase};
use super::super::origin::Announced;
use super::{Done, MAX_PATH_CHARS, Session};
use crate::buffer::Registered;
use crate::staging::Held;
use futures_util::{Stream, StreamExt};
use walhub_common::limits::MAX_DATABASES_PER_AGENT;
use walhub_common::{DatabaseKey, DatabaseName, Pos};
use walhub_proto::convert;
use walhub_proto::v1::replicate_response::Message as Response;
use walhub_proto::v1::{DatabaseOpened, OpenDatabase, Refused, ReplicateRequest, Staging as Parts};

impl<S> Session<'_, S>
where
    S: Stream<Item = Result<ReplicateRequest, SessionError>> + Unpin + Send,
{
    pub(super) async fn open(&mut self, open: OpenDatabase) -> Result<(), SessionError> {
        let handle = open.handle;
        // Opening again is closing first; the position is read when nothing is under way any more.
        self.close(handle);
        while self.handles.contains_key(&handle) {
            let done = self.under_way.next().await.expect("BUG: a closing handle has nothing under way");
            self.done(done)?;
        }
        if let Err(refusal) = self.try_open(&open) {
            self.say_refused(handle, &refusal, None);
        }
        Ok(())
    }

    fn try_open(&mut self, open: &OpenDatabase) -> Result<(), Refusal> {
        let name = DatabaseName::new(open.name.as_str())?;
        let position = convert::position_from_wire(open.position.as_ref())?;
        if open.handle == 0 {
            return Err(Refusal::malformed("handles are counted from 1"));
        }
        if let Some(other) = self.names.get(&name) {
            return Err(Refusal::malformed(format!("{name} is already open under handle {other}")));
        }
        let key = DatabaseKey::new(self.agent.clone(), name.clone());
        let path: String = open.path.chars().take(MAX_PATH_CHARS).collect();
        let held = self.hub.buffer.find(&key);
        if held.is_none() {
            let databases = self.databases.get_or_insert_with(|| {
                self.hub.buffer.databases().iter().filter(|d| d.key.agent == self.agent).count()
            });
            if *databases >= MAX_DATABASES_PER_AGENT {
                return Err(Refusal::busy(format!(
                    "this node has {databases} databases at the hub already, the most it may have"
                )));
            }
            *databases += 1;
        }
        self.names.insert(name, open.handle);
        let state = Handle::opening(key.clone(), open.lineage, position);
        let state = self.handles.entry(open.handle).or_insert(state);
        match held {
            Some(held) if held.path == path && !self.hub.origins.must_look(Some(&held), position) => {
                self.opened(open.handle, &held);
            }
            _ => {
                state.under_way += 1;
                let (buffer, origins, handle) =
                    (self.hub.buffer.clone(), self.hub.origins.clone(), open.handle);
                let announced = Announced { key, lineage: open.lineage, position, path };
                self.under_way.push(Box::pin(async move {
                    let result = origins.register(&*buffer, &announced).await;
                    Done::Registered { handle, result }
                }));
            }
        }
        Ok(())
    }

    pub(super) fn opened(&mut self, handle: u32, held: &Registered) {
        if !self.look(handle, held) {
            self.open_with(handle, held, None);
        }
    }

    /// Answers an opening, with the parts of an unfinished first snapshot.
    pub(super) fn open_with(&mut self, handle: u32, held: &Registered, staged: Option<Held>) {
        if self.hub.staging.is_sealing(&held.key) {
            let refusal =
                Refusal::busy("its first snapshot is being put together; open it again in a moment");
            return self.refuse(handle, refusal);
        }
        let state = self.handles.get_mut(&handle).expect("BUG: an opened handle is known");
        self.ids.insert(held.id, handle);
        let durable = self.hub.fleet.board.open(held.id, &held.key, self.inbox.clone());
        match state.registered(held) {
            Ok(()) => self.outbox.push(Response::Opened(DatabaseOpened {
                handle,
                lineage: held.lineage,
                position: Some(convert::position_to_wire(held.position)),
                durable_txid: durable.map_or(0, |txid| txid.get()),
                staging: staged.map(Parts::from),
                images: held.position.is_none() && self.hub.staging.has_images(),
            })),
            Err(refusal) => self.refuse(handle, refusal),
        }
    }

    pub(super) fn close(&mut self, handle: u32) {
        if let Some(state) = self.handles.get_mut(&handle) {
            state.phase = Phase::Closing;
            state.incoming = Incoming::Nothing;
            state.stage.leave();
            self.settle(handle);
        }
    }

    pub(super) fn refuse(&mut self, handle: u32, refusal: Refusal) {
        if let Some(state) = self.handles.get_mut(&handle) {
            tracing::warn!(database = %state.key, code = refusal.code.as_str_name(), reason = %refusal, "segment refused");
            state.incoming = Incoming::Nothing;
            state.stage.leave();
            state.phase = Phase::Refusing(refusal);
            self.settle(handle);
        }
    }

    /// Takes a handle that has nothing under way to the end that was decided for it.
    pub(super) fn settle(&mut self, handle: u32) {
        let Some(state) = self.handles.get_mut(&handle) else { return };
        if state.under_way > 0 || !matches!(state.phase, Phase::Refusing(_) | Phase::Closing) {
            return;
        }
        if let (true, Some(database)) = (std::mem::take(&mut state.leftover), state.database) {
            state.under_way += 1;
            let buffer = self.hub.buffer.clone();
            self.under_way.push(Box::pin(async move {
                Done::Abandoned { handle, result: buffer.abandon(database).await }
            }));
            return;
        }
        match std::mem::replace(&mut state.phase, Phase::Refused) {
            Phase::Refusing(refusal) => {
                let position = self.hub.buffer.find(&state.key).and_then(|held| held.position);
                if let Some(database) = state.database {
                    self.ids.remove(&database);
                    self.hub.fleet.board.close(database);
                    self.hub.fleet.board.post_refusal(database, &refusal.message);
                }
                self.say_refused(handle, &refusal, position);
            }
            _ => {
                let state = self.handles.remove(&handle).expect("BUG: the handle was just there");
                self.names.remove(&state.key.name);
                if let Some(database) = state.database {
                    self.ids.remove(&database);
                    self.hub.fleet.board.close(database);
                }
            }
        }
    }

    pub(super) fn say_refused(&mut self, handle: u32, refusal: &Refusal, position: Option<Pos>) {
        self.outbox.push(Response::Refused(Refused {
            handle,
            code: refusal.code.into(),
            message: refusal.message.clone(),
            position: Some(convert::position_to_wire(position)),
        }));
    }
}
