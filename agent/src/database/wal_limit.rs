//! What is done about a WAL that grows: its transactions are spooled, or restore points given up, or the one who keeps it
//! long is named.

use super::drive::{Driver, End, failed};
use crate::capture::Standing;
use walhub_common::clock::now_ms;

impl Driver<'_> {
    /// Takes transactions off a WAL that comes near its limit; true when it did. A quarter of the limit is left for what
    /// writers do meanwhile.
    ///
    /// `hurry`: writers are faster than the reading.
    pub(super) async fn limit_wal(&mut self, hurry: bool) -> Result<bool, End> {
        if self.home().capture.restarted() {
            self.blocking(|f| f.capture.keep_place()).await?.map_err(failed)?;
        }
        self.look_at_readers().await?;
        let capture = &self.home().capture;
        if capture.header_moved() {
            self.db.report.waiting();
        }
        let limit = self.db.shared.wal_limit;
        let near = capture.wal_bytes() > limit - limit / 4;
        // When a reader outside keeps the log long, nothing that is given up makes it shorter.
        if !near || capture.standing() != Standing::Aligned || capture.held_back().is_some() {
            return Ok(false);
        }
        let before = capture.position();
        let lost = self.blocking(move |f| f.spool(hurry, limit)).await?.map_err(failed)?;
        self.tell_lost(lost);
        if lost.points() > 0 {
            tracing::warn!(database = %self.db.name, restore_points = lost.points(), "transactions come faster than the hub takes them, the WAL is at its limit and the spool is full; the latest state is kept, these restore points are not");
        }
        self.account();
        Ok(self.home().capture.position() != before)
    }

    /// Says who keeps the log from beginning anew, once, and when that is over.
    pub(super) async fn look_at_readers(&mut self) -> Result<(), End> {
        let held = self.home().capture.held_back();
        match (held, self.held_back) {
            (Some(since), false) => {
                let by = self.blocking(|f| f.capture.held_by()).await?;
                let wal_bytes = self.home().capture.wal_bytes();
                let reason = format!(
                    "the -wal cannot begin anew and grows ({} MiB): {} {} a read transaction open",
                    wal_bytes >> 20,
                    by.holders,
                    if by.litestream { "(Litestream, it seems) keeps" } else { "keeps" },
                );
                let what_to_do = if by.litestream {
                    "stop Litestream for this database: it keeps a read lock for life, and walhub writes the same format"
                } else {
                    "end that transaction: a query that was not finished, a cursor that was not closed, or a backup that hangs"
                };
                self.held_back = true;
                self.db.report.notice(Some((reason.clone(), what_to_do.to_owned())));
                let since_ms = now_ms().saturating_sub(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
                tracing::warn!(database = %self.db.name, path = %self.db.path.display(), reason, what_to_do, since_ms, "a reader holds the WAL back");
            }
            (None, true) => {
                self.held_back = false;
                self.db.report.notice(None);
                tracing::info!(database = %self.db.name, "the WAL begins anew again");
            }
            _ => {}
        }
        Ok(())
    }
}
