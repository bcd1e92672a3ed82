//! The steps towards agreement that `ship::resume` names, done.

use super::drive::{Driver, End, failed};
use super::fetch::fetch;
use super::follower::{Pumped, Target};
use super::sink::{Chunker, Kind};
use crate::ship::link::Link;
use crate::ship::resume::Step;
use tokio::sync::OwnedSemaphorePermit;
use walhub_common::{Pos, Txid};
use walhub_proto::v1::replicate_request::Message;

impl Driver<'_> {
    /// One step towards agreement.
    pub(super) async fn take(&mut self, step: Step, to: &Target) -> Result<(), End> {
        match step {
            Step::Follow => Ok(()),
            Step::Fork { ours, hub } => Err(End::Fork(format!(
                "transaction {} has checksum {} here and {} at the hub",
                hub.txid.get(),
                ours.checksum,
                hub.checksum
            ))),
            Step::Resend => self.resend(&to.link).await,
            Step::Unspool => self.unspool(to).await,
            Step::Replay { until } => {
                let target = to.clone();
                let replayed = self.blocking(move |f| f.replay(until, &target)).await?;
                self.exhausted = replayed.map_err(failed)? == Pumped::UpToDate;
                self.look(&to.link)
            }
            Step::Delta { since } => {
                self.drop_unconnected_spool();
                match since {
                    None => self.first_snapshot(to).await,
                    since => self.delta(since, to).await,
                }
            }
            Step::RollForward { after, until } => self.roll_forward(&to.link, after, until).await,
            Step::Heal => {
                self.drop_unconnected_spool();
                self.heal(to).await
            }
        }
    }

    pub(super) async fn delta(&mut self, since: Option<Pos>, to: &Target) -> Result<(), End> {
        let _turn = self.turn().await;
        let had = self.home().capture.position().is_some();
        let target = to.clone();
        let made = self.blocking(move |f| f.delta(since, &target)).await?;
        let (meta, sent) = self.sent(made, &to.link)?;
        self.db.report.healed(sent.pages, sent.bytes);
        if had {
            self.tell_joined(meta.range);
        }
        self.hub = Some(meta.position());
        Ok(())
    }

    async fn heal(&mut self, to: &Target) -> Result<(), End> {
        let _turn = self.turn().await;
        let target = to.clone();
        let made = self.blocking(move |f| f.heal(&target)).await?;
        let made = self.sent(made, &to.link)?;
        let (pages, bytes) = made.map_or((0, 0), |(_, sent)| (sent.pages, sent.bytes));
        self.db.report.healed(pages, bytes);
        if let Some((meta, _)) = made {
            self.hub = Some(meta.position());
        }
        Ok(())
    }

    async fn resend(&mut self, link: &Link) -> Result<(), End> {
        let mut messages = Vec::new();
        for entry in self.home().window.after(self.hub).into_iter().flatten() {
            let mut chunker = Chunker::new(self.db.handle, Kind::Segment, entry.meta, link.max_chunk);
            let chunks = entry.chunks().unwrap_or_default();
            for (at, data) in chunks.iter().enumerate() {
                messages.extend(chunker.cut(data.clone(), at + 1 == chunks.len()));
            }
        }
        for message in messages {
            if let Message::Segment(chunk) = &message {
                self.db.report.sent(chunk.data.len());
            }
            link.send(message).await?;
        }
        self.hub = self.home().window.end();
        Ok(())
    }

    async fn roll_forward(&mut self, link: &Link, after: Option<Txid>, until: Pos) -> Result<(), End> {
        let _turn = self.turn().await;
        let db = self.db;
        let asked = fetch(link.channel.clone(), (&db.shared.agent, &db.name), after, until).await;
        let (fetch, fetched) = asked.map_err(unavailable)?;
        let applying = self.blocking(move |f| fetched.read(|pages| f.capture.roll_forward(pages)));
        let (fetched, applied) = tokio::join!(fetch.run(), applying);
        let applied = applied?;
        self.look(link)?;
        fetched.map_err(unavailable)?;
        applied.map_err(failed)
    }

    /// A turn for long work.
    pub(super) fn turn(&self) -> impl Future<Output = OwnedSemaphorePermit> + use<> {
        let turns = self.db.shared.turns.clone();
        async move { turns.acquire_owned().await.expect("BUG: turns are never closed") }
    }
}

pub(super) fn unavailable(text: String) -> End {
    End::Later(format!("the hub could not send its page checksums: {text}"))
}
