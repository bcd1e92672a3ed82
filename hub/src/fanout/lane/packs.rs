//! Packs of a lane: how they leave, and what becomes of the databases whose files they carry.
//!
//! Whoever waits for a pack, or is on its way in one, when the place turns out to be gone is doubted: its file may not
//! arrive as if what leads to it were there.

use super::{Finished, Lane};
use crate::fanout::error::{Concerns, TurnError};
use crate::fanout::tray::Sealed;
use crate::fanout::turn::{Progress, Turn};
use walhub_store::destinations::Put;

impl Lane {
    pub(super) fn start_pack(&mut self, mut sealed: Sealed) {
        let venue = self.venue.clone();
        self.in_flight.push(Box::pin(async move {
            let packs = venue.place.destination.packs();
            let packs = packs.expect("BUG: only files of a packed destination wait");
            let result = sealed.put(packs, &venue.abort).await;
            Finished::Pack(sealed, result)
        }));
    }

    /// Every database of the pack has had its turn; the object counts once.
    pub(super) fn pack_arrived(&mut self, sealed: Sealed, put: Put) {
        self.tray.settled();
        if self.is_doubted(&sealed) {
            // What leads to its files may not be there.
            return sealed.riders.into_iter().for_each(|progress| self.look_again(progress));
        }
        let mut created = (put == Put::Created).then_some(sealed.bytes());
        let venue = self.venue.clone();
        for mut progress in sealed.riders {
            let created = created.take();
            let objects = created.is_some().into();
            let result = venue.arrived(&mut progress).map(|turn| Turn { created, objects, ..turn });
            self.turn_finished(progress, result);
        }
    }

    pub(super) fn pack_failed(&mut self, sealed: Sealed, error: &TurnError) {
        if error.place_is_gone() || !error.unsettles() && error.concerns() != Concerns::Nobody {
            self.lane_failed(error);
        }
        if !error.unsettles() && !self.is_doubted(&sealed) {
            self.tray.put_back(sealed);
            return;
        }
        // Another pack has its number, or what leads to its files may be gone: every database is looked at again.
        tracing::warn!(destination = %self.name(), %error, "a pack is made anew");
        self.tray.settled();
        sealed.riders.into_iter().for_each(|progress| self.look_again(progress));
    }

    /// Was the place gone since it was sealed?
    fn is_doubted(&self, sealed: &Sealed) -> bool {
        sealed.riders.iter().any(|progress| self.doubted.contains(&progress.id))
    }

    /// A file that waited for a pack is made anew, once it is known what the destination holds.
    pub(super) fn look_again(&mut self, mut progress: Progress) {
        let id = progress.id;
        progress.unsettle();
        if self.doubted.remove(&id) {
            progress.distrust();
            self.venue.holds_nothing(id, &progress.key);
        }
        self.away.remove(&id);
        self.idle.insert(id, progress);
        self.enqueue(id);
    }
}
