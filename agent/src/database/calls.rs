//! Calls of the local socket, answered by the database's task, and the pause that one of them asks for (YIELD).

use super::State;
use super::desk::{Ask, Call, Done, Refused};
use super::drive::{Driver, End, failed, sleep_until};
use crate::capture::{AttachError, NoCheckpoint};
use std::collections::VecDeque;
use std::convert::Infallible;
use tokio::time::Instant;
use walhub_common::clock::now_ms;

impl Driver<'_> {
    /// Answers the calls that waited when the log was last read to its end, [`Driver::asked`].
    pub(super) async fn answer_calls(&mut self) -> Result<(), End> {
        while let Some(call) = self.asked.pop_front() {
            let done = match &call.ask {
                _ if call.is_dropped() => continue,
                Ask::Sync => Ok(Done::Captured(self.home().capture.position().map(|p| p.txid))),
                Ask::Checkpoint { shrink } => self.checkpoint(*shrink).await?,
                Ask::Pause(_) => return self.pause(call).await,
                Ask::Resume => Ok(Done::Resumed { was_paused: false }),
                Ask::Survey(wanted) => self.survey(wanted).await?,
                Ask::Assemble(wanted, to) => self.assemble(wanted, to).await?,
                Ask::Replace(wanted, wait) => self.replace(wanted, *wait).await?,
            };
            call.answer(done);
        }
        Ok(())
    }

    /// As [`Driver::answer_calls`] under writers that never pause: what need not wait until the log was read to its end.
    pub(super) async fn answer_restores(&mut self) -> Result<(), End> {
        let waiting = std::mem::take(&mut self.asked);
        let (mut now, later): (VecDeque<Call>, VecDeque<Call>) = waiting
            .into_iter()
            .partition(|call| matches!(call.ask, Ask::Survey(_) | Ask::Assemble(..) | Ask::Replace(..)));
        std::mem::swap(&mut self.asked, &mut now);
        let answered = self.answer_calls().await;
        self.asked.extend(later);
        answered
    }

    /// As [`Driver::answer_calls`] while the hub cannot be reached: what needs it is refused, or waits.
    pub(super) async fn answer_calls_away(&mut self) -> Result<(), End> {
        self.asked.extend(self.db.desk.take());
        let mut waiting = std::mem::take(&mut self.asked);
        waiting.retain(|call| !call.is_dropped());
        while let Some(call) = waiting.pop_front() {
            match &call.ask {
                Ask::Sync => self.asked.push_back(call),
                Ask::Survey(_) | Ask::Assemble(..) | Ask::Replace(..) => call.answer(Err(Refused::new(
                    "hub-away",
                    "the hub takes nothing for now, and what is in the database must be at the hub first",
                    "try again when `walhub-agent status` says following",
                ))),
                Ask::Checkpoint { .. } => call.answer(Err(Refused::new(
                    "hub-away",
                    "the hub takes nothing for now, so transactions wait in the -wal file",
                    "try again when `walhub-agent status` says following; or `walhub-agent pause`, which lets the \
                     application checkpoint by itself",
                ))),
                Ask::Pause(_) => {
                    self.asked.append(&mut waiting);
                    return self.pause(call).await;
                }
                Ask::Resume => call.answer(Ok(Done::Resumed { was_paused: false })),
            }
        }
        Ok(())
    }

    async fn checkpoint(&mut self, shrink: bool) -> Result<Result<Done, Refused>, End> {
        let done = self.blocking(move |f| f.capture.checkpoint(shrink)).await?.map_err(failed)?;
        self.account();
        Ok(match done {
            Ok(done) => {
                tracing::info!(database = %self.db.name, shrink, complete = done.complete, held_ms = done.held.as_millis(), "checkpoint on request");
                Ok(Done::Checkpointed(done))
            }
            Err(refused) => {
                let what_to_do = match refused {
                    NoCheckpoint::WriterBusy => "try again when that transaction has ended",
                    NoCheckpoint::Behind(_) => "try again in a moment, the agent is catching up",
                    NoCheckpoint::Unaligned => "try again when `walhub-agent status` says following",
                };
                Err(Refused::new("busy", refused.to_string(), what_to_do))
            }
        })
    }

    async fn pause(&mut self, call: Call) -> Result<(), End> {
        let Ask::Pause(length) = call.ask else { return Ok(()) };
        if let Err(e) = self.blocking(|f| f.capture.yield_lock()).await? {
            call.answer(Err(Refused::new("failed", e.to_string(), "see the agent's log")));
            return Err(failed(e));
        }
        self.pause_for(length, call);
        Err(End::Again)
    }

    fn pause_for(&mut self, length: std::time::Duration, call: Call) {
        let until_ms = now_ms().saturating_add(i64::try_from(length.as_millis()).unwrap_or(i64::MAX));
        self.paused_until = Some(Instant::now() + length);
        self.db.report.pause(until_ms);
        tracing::info!(database = %self.db.name, seconds = length.as_secs(), "paused: the application checkpoints by itself");
        call.answer(Ok(Done::Paused(until_ms)));
    }

    /// YIELD: nothing is read until the pause is over, then ALIGN.
    pub(super) async fn paused(&mut self) -> Result<Infallible, End> {
        let budget = self.db.shared.budget.clone();
        let mut resumed = Vec::new();
        while resumed.is_empty() {
            tokio::select! {
                () = sleep_until(self.paused_until) => break,
                // Others follow and need the memory that this one only holds.
                () = budget.pressed() => self.clear_window(),
                mail = self.mail() => { mail?; }
            }
            let mut calls = std::mem::take(&mut self.asked);
            calls.extend(self.db.desk.take());
            for call in calls {
                match call.ask {
                    Ask::Pause(length) => self.pause_for(length, call),
                    Ask::Resume => resumed.push(call),
                    Ask::Sync | Ask::Checkpoint { .. } | Ask::Survey(_) | Ask::Assemble(..) | Ask::Replace(..) => call.answer(Err(Refused::new(
                        "paused",
                        "the database is paused: nothing is captured, and the application checkpoints by itself",
                        "end the pause with `walhub-agent resume`",
                    ))),
                }
            }
        }
        let reclaimed = self.blocking(|f| f.capture.reclaim()).await?;
        self.paused_until = None;
        let answer = match &reclaimed {
            Ok(()) => Ok(Done::Resumed { was_paused: true }),
            Err(e) => Err(Refused::new("failed", e.to_string(), "it is tried again by itself")),
        };
        resumed.into_iter().for_each(|call| call.answer(answer.clone()));
        tracing::info!(database = %self.db.name, capture = ?self.home().capture.standing(), "the pause is over");
        Err(match reclaimed {
            Ok(()) => End::Again,
            Err(AttachError::Absent(absent)) => {
                self.db.report.trouble(State::Absent, &absent.to_string(), None);
                End::Adrift
            }
            Err(AttachError::Failed(e)) => failed(e),
        })
    }
}
