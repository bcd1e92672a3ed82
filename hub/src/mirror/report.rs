//! Which mirror each destination has, for the status.

use super::state::HubId;
use crate::copies::LaneId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The mirror at one destination.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SiteMirror {
    /// Number of the newest one there; 0 when there is none.
    pub seq: u64,
    /// When it was made, Unix ms; 0 when there is none.
    pub written_ms: i64,
    /// There is no newer one.
    pub current: bool,
    /// Why the newest one is not there yet; empty when nothing failed.
    pub error: String,
}

#[derive(Debug, Default)]
struct State {
    hub: String,
    newest: u64,
    /// No newer one can be made.
    error: String,
    sites: BTreeMap<LaneId, SiteMirror>,
}

/// Shared by those who write mirrors and the status.
#[derive(Debug, Default)]
pub struct MirrorReport(Mutex<State>);

impl MirrorReport {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn identify(&self, hub: &HubId) {
        self.state().hub = hub.to_string();
    }

    pub(super) fn newest(&self, seq: u64) {
        let mut state = self.state();
        state.newest = seq;
        state.error.clear();
    }

    pub(super) fn failed(&self, error: &str) {
        error.clone_into(&mut self.state().error);
    }

    pub(super) fn post(&self, lane: LaneId, change: impl FnOnce(&mut SiteMirror)) {
        change(self.state().sites.entry(lane).or_default());
    }

    /// Id of the hub; empty before it is known.
    pub fn hub(&self) -> String {
        self.state().hub.clone()
    }

    /// What the destination of a lane has.
    pub fn at(&self, lane: LaneId) -> SiteMirror {
        let state = self.state();
        let mut site = state.sites.get(&lane).cloned().unwrap_or_default();
        site.current = site.seq != 0 && site.seq == state.newest && state.error.is_empty();
        if !state.error.is_empty() {
            site.error.clone_from(&state.error);
        }
        site
    }
}
