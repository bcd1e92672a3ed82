//! A job as people and programs read it: what was asked for, what was reached, how it was proven, how long it took.

use crate::fault::clean;
use crate::output::{self, Table};
use serde::Serialize;
use std::collections::BTreeMap;
use walhub_common::clock;
use walhub_proto::v1;
use walhub_proto::v1::job_request::Point;
use walhub_proto::v1::{JobState, OrderState, TargetState};

/// What it takes at most, as it was planned.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AtMost {
    /// Read from where copies lie.
    pub(crate) bytes: u64,
    pub(crate) requests: u64,
    /// By list prices.
    pub(crate) cost_usd: f64,
    /// When every node is there.
    pub(crate) seconds: f64,
}

impl From<v1::JobCost> for AtMost {
    fn from(cost: v1::JobCost) -> AtMost {
        AtMost {
            bytes: cost.bytes,
            requests: cost.requests,
            cost_usd: cost.cost_micros as f64 / 1e6,
            seconds: cost.time_ms as f64 / 1e3,
        }
    }
}

impl AtMost {
    /// `at most 1.2 GiB read from copies in 120 requests, 0.0120 US dollars, about 12.3 s`.
    pub(crate) fn text(&self) -> String {
        let AtMost { bytes, requests, cost_usd, seconds } = self;
        let bytes = output::bytes(*bytes);
        format!(
            "at most {bytes} read from copies in {requests} requests, {cost_usd:.4} US dollars, about {seconds:.1} s"
        )
    }
}

/// Element of `hubctl jobs list`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) job: String,
    pub(crate) state: &'static str,
    pub(crate) reason: Option<String>,
    /// The point: a time, `TXID n`, or `the newest state`.
    pub(crate) asked: String,
    pub(crate) operator: String,
    pub(crate) started: Option<String>,
    pub(crate) ended: Option<String>,
    /// From the start to the end, or to now.
    pub(crate) seconds: f64,
    pub(crate) wave: u32,
    pub(crate) waves: u32,
    pub(crate) databases: u32,
    pub(crate) restored: u32,
    pub(crate) failed: u32,
    pub(crate) running: u32,
    pub(crate) away: u32,
    /// Null of jobs that an older hub planned.
    pub(crate) at_most: Option<AtMost>,
    /// Databases for which retention keeps what leads to their point.
    pub(crate) kept: u32,
}

/// One database of a report.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub(crate) database: String,
    pub(crate) wave: u32,
    pub(crate) state: &'static str,
    pub(crate) asked_txid: u64,
    pub(crate) asked_time: Option<String>,
    pub(crate) reached_txid: Option<u64>,
    /// Database checksum that the node computed of what it restored.
    pub(crate) checksum: Option<String>,
    /// `verified`: equal to the one taken at the source.
    pub(crate) verdict: Option<&'static str>,
    /// The restored state as a transaction of the history; null when nothing differed.
    pub(crate) new_txid: Option<u64>,
    /// The restore point of what was there before.
    pub(crate) safety_txid: Option<u64>,
    /// Where the node keeps the file that was there before, when it is no restore point.
    pub(crate) kept_file: Option<String>,
    pub(crate) bytes: u64,
    /// On the node.
    pub(crate) seconds: f64,
    /// From the order to its end, by the hub's clock.
    pub(crate) hub_seconds: f64,
    pub(crate) error: Option<String>,
    pub(crate) at_most: Option<AtMost>,
}

/// A database that matched and has no such point.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LeftOut {
    pub(crate) database: String,
    pub(crate) error: String,
}

/// A job with its databases.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    pub(crate) summary: Summary,
    pub(crate) list: Vec<Line>,
    pub(crate) left_out: Vec<LeftOut>,
}

/// A job as it is told piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    pub(crate) job: v1::Job,
    targets: BTreeMap<(u32, String), v1::JobTarget>,
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then(|| clean(&text))
}

fn time(ms: i64) -> Option<String> {
    (ms != 0).then(|| clock::format_ms(ms))
}

/// Nothing takes no request at all: nobody has estimated it.
pub(crate) fn planned(cost: Option<v1::JobCost>) -> Option<AtMost> {
    cost.filter(|cost| cost.requests > 0).map(AtMost::from)
}

fn key(database: Option<&v1::DatabaseRef>) -> String {
    database.map(|key| clean(&format!("{}/{}", key.agent, key.name))).unwrap_or_default()
}

/// Whether the hub will do nothing more about it by itself.
pub(crate) fn is_end(state: JobState) -> bool {
    matches!(state, JobState::Done | JobState::Failed | JobState::Cancelled)
}

fn word(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Paused => "paused",
        JobState::Stopped => "stopped",
        JobState::Cancelling => "cancelling",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
        JobState::Unspecified => "unknown",
    }
}

fn target_word(state: TargetState) -> &'static str {
    match state {
        TargetState::Pending => "pending",
        TargetState::Away => "away",
        TargetState::Ordered => "ordered",
        TargetState::Running => "running",
        TargetState::Done => "done",
        TargetState::Failed => "failed",
        TargetState::Cancelled => "cancelled",
        TargetState::Unspecified => "unknown",
    }
}

impl From<v1::Job> for Summary {
    fn from(job: v1::Job) -> Summary {
        let asked = match job.request.as_ref().and_then(|request| request.point) {
            Some(Point::TimestampMs(ms)) => clock::format_ms(ms),
            Some(Point::Txid(txid)) => format!("TXID {txid}"),
            None => "the newest state".to_owned(),
        };
        let until = if job.ended_ms == 0 { clock::now_ms() } else { job.ended_ms };
        Summary {
            state: word(job.state()),
            asked,
            seconds: (until - job.started_ms).max(0) as f64 / 1000.0,
            job: clean(&job.id),
            reason: some(job.reason),
            operator: clean(&job.operator),
            started: time(job.started_ms),
            ended: time(job.ended_ms),
            wave: job.wave,
            waves: job.waves,
            databases: job.total,
            restored: job.done,
            failed: job.failed,
            running: job.running,
            away: job.away,
            at_most: planned(job.at_most),
            kept: job.kept,
        }
    }
}

impl Summary {
    /// `job 20261123-0230-7f3a done: 100 of 100 databases at 2026-…, 0 failed, 42.1 s`.
    pub(crate) fn line(&self) -> String {
        let away = if self.away > 0 { format!(", {} away", self.away) } else { String::new() };
        let reason = self.reason.as_ref().map(|reason| format!("; {reason}")).unwrap_or_default();
        format!(
            "job {} {}: {} of {} databases at {}, {} failed{away}, {:.1} s{reason}",
            self.job, self.state, self.restored, self.databases, self.asked, self.failed, self.seconds,
        )
    }
}

impl From<&v1::JobTarget> for Line {
    fn from(target: &v1::JobTarget) -> Line {
        let update = target.update.clone().unwrap_or_default();
        let reached = update.reached.filter(|_| target.state() == TargetState::Done);
        Line {
            database: key(target.database.as_ref()),
            wave: target.wave,
            state: target_word(target.state()),
            asked_txid: target.until.map_or(0, |until| until.txid),
            asked_time: time(target.until_ms),
            reached_txid: reached.map(|pos| pos.txid),
            checksum: reached.map(|pos| format!("{:016x}", pos.checksum)),
            verdict: reached
                .map(|pos| if target.until == Some(pos) { "verified" } else { "another position" }),
            new_txid: Some(update.new_txid).filter(|txid| *txid > 0),
            safety_txid: Some(update.safety_txid).filter(|txid| *txid > 0),
            kept_file: some(update.kept),
            bytes: update.bytes,
            seconds: update.elapsed_ms as f64 / 1000.0,
            hub_seconds: target.took_ms as f64 / 1000.0,
            error: some(target.message.clone()),
            at_most: planned(target.at_most),
        }
    }
}

impl Line {
    /// What happened to it, for people.
    pub(crate) fn text(&self) -> String {
        let Line { database, asked_txid, bytes, seconds, .. } = self;
        match (self.state, &self.error) {
            ("done", _) => {
                let as_txid = match (self.new_txid, self.safety_txid) {
                    (Some(txid), _) => format!("as TXID {txid}"),
                    (None, Some(_)) => "nothing differed".to_owned(),
                    // Of a file that was replaced, where nothing was followed before.
                    (None, None) => "not followed yet".to_owned(),
                };
                let safety = match (&self.kept_file, self.safety_txid) {
                    (Some(kept), _) => format!(", the file of before is kept as {kept}"),
                    (None, Some(txid)) => format!(", before it TXID {txid}"),
                    (None, None) => String::new(),
                };
                let time = self.asked_time.as_deref().unwrap_or("?");
                let checksum = self.checksum.as_deref().unwrap_or("?");
                format!(
                    "{database} is at TXID {asked_txid} of {time}: {as_txid}{safety}, checksum {checksum} {}, {} \
                     fetched, {seconds:.2} s",
                    self.verdict.unwrap_or("?"),
                    output::bytes(*bytes),
                )
            }
            (state, Some(error)) => format!("{database} {state}: {error}"),
            (state, None) => format!("{database} {state}"),
        }
    }
}

impl Picture {
    /// Takes news in; the databases that came to an end with them.
    pub(crate) fn take(&mut self, update: v1::JobUpdate) -> Vec<Line> {
        if let Some(job) = update.job {
            self.job = job;
        }
        let mut ended = Vec::new();
        for target in update.targets {
            let at = (target.wave, key(target.database.as_ref()));
            let is_end = |t: &v1::JobTarget| t.state() as i32 >= TargetState::Done as i32;
            let was = self.targets.insert(at, target.clone());
            if is_end(&target) && !was.as_ref().is_some_and(is_end) {
                ended.push(Line::from(&target));
            }
        }
        ended
    }

    /// Databases that nodes are at, with what they said last.
    pub(crate) fn running(&self) -> impl Iterator<Item = (String, v1::OrderUpdate)> {
        self.targets
            .values()
            .filter(|target| target.state() == TargetState::Running)
            .map(|target| (key(target.database.as_ref()), target.update.clone().unwrap_or_default()))
    }

    /// Everything as it is now.
    pub(crate) fn report(&self) -> Report {
        let left_out = self
            .job
            .unplanned
            .iter()
            .map(|left| LeftOut { database: key(left.database.as_ref()), error: clean(&left.reason) });
        Report {
            left_out: left_out.collect(),
            summary: Summary::from(self.job.clone()),
            list: self.targets.values().map(Line::from).collect(),
        }
    }
}

impl Report {
    /// True when every database that was asked for is at its point.
    pub(crate) fn is_complete(&self) -> bool {
        self.left_out.is_empty() && self.summary.restored == self.summary.databases
    }

    /// As a table with a summary below it.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut table = Table::new(&[
            "DATABASE", ">WAVE", "STATE", ">ASKED", ">REACHED", "VERDICT", ">NOW", ">BEFORE", ">FETCHED",
            ">SECONDS", "ERROR",
        ]);
        let number = |txid: Option<u64>| txid.map(|txid| txid.to_string()).unwrap_or_default();
        for line in &self.list {
            table.row([
                line.database.clone(),
                line.wave.to_string(),
                line.state.to_owned(),
                line.asked_txid.to_string(),
                number(line.reached_txid),
                line.verdict.unwrap_or_default().to_owned(),
                number(line.new_txid),
                number(line.safety_txid),
                output::bytes(line.bytes),
                format!("{:.2}", line.seconds),
                line.error.clone().unwrap_or_default(),
            ]);
        }
        let mut lines = table.lines();
        let kept = self.list.iter().filter_map(|line| Some((&line.database, line.kept_file.as_ref()?)));
        lines
            .extend(kept.map(|(database, kept)| format!("{database}: the file of before is kept as {kept}")));
        lines.extend(self.left_out.iter().map(|left| format!("{} left out: {}", left.database, left.error)));
        if self.summary.kept > 0 {
            let kept = self.summary.kept;
            lines.push(format!(
                "retention keeps what leads to the points of {kept} databases until the job ends"
            ));
        }
        lines.push(self.summary.line());
        lines
    }
}

/// What a node says of an order that it is at, for people.
pub(crate) fn at_it(update: &v1::OrderUpdate) -> String {
    match update.state() {
        OrderState::Fetching if update.total_bytes > 0 => {
            format!("{} of {}", output::bytes(update.bytes), output::bytes(update.total_bytes))
        }
        OrderState::Fetching => "comparing".to_owned(),
        OrderState::Applying => "writing".to_owned(),
        _ => "waiting for its turn".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(state: JobState, targets: &[(&str, TargetState)]) -> v1::JobUpdate {
        let target = |(name, state): &(&str, TargetState)| {
            let until = Some(v1::Position { txid: 7, checksum: (1 << 63) | 5 });
            let update = v1::OrderUpdate {
                bytes: 2048,
                reached: until,
                new_txid: 9,
                safety_txid: 8,
                elapsed_ms: 1500,
                ..Default::default()
            };
            v1::JobTarget {
                database: Some(v1::DatabaseRef { agent: (*name).to_owned(), name: "app.db".into() }),
                wave: 1,
                until,
                until_ms: 1_795_354_117_090,
                state: (*state).into(),
                update: Some(update),
                message: if *state == TargetState::Failed { "no\u{1b}[2J".into() } else { String::new() },
                took_ms: 2000,
                at_most: Some(v1::JobCost { bytes: 4096, requests: 12, cost_micros: 1500, time_ms: 40 }),
            }
        };
        let done = targets.iter().filter(|(_, state)| *state == TargetState::Done).count() as u32;
        let job = v1::Job {
            id: "20261123-0230-abcd".into(),
            state: state.into(),
            total: 2,
            done,
            kept: 2 - done,
            ..Default::default()
        };
        v1::JobUpdate { job: Some(job), targets: targets.iter().map(target).collect() }
    }

    #[test]
    fn an_end_is_told_once_however_often_it_is_heard() {
        let mut picture = Picture::default();
        let told = |picture: &mut Picture, states: &[(&str, TargetState)]| -> Vec<String> {
            picture.take(update(JobState::Running, states)).iter().map(Line::text).collect()
        };
        assert!(told(&mut picture, &[("a", TargetState::Running), ("b", TargetState::Away)]).is_empty());
        assert_eq!(picture.running().count(), 1);
        assert_eq!(
            told(&mut picture, &[("a", TargetState::Done)]),
            ["a/app.db is at TXID 7 of 2026-11-22T13:28:37.09Z: as TXID 9, before it TXID 8, checksum \
              8000000000000005 verified, 2.0 KiB fetched, 1.50 s"]
        );
        // After a restart of the hub everything is told from the beginning.
        let all = [("a", TargetState::Done), ("b", TargetState::Failed)];
        assert_eq!(told(&mut picture, &all), ["b/app.db failed: no [2J"]);
        let report = picture.report();
        assert!(!report.is_complete() && report.list[1].reached_txid.is_none());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            (&json["job"], &json["list"][0]["verdict"]),
            (&"20261123-0230-abcd".into(), &"verified".into())
        );
        assert_eq!(json["list"][1]["error"], "no [2J");
        assert_eq!(json["list"][0]["at_most"]["cost_usd"], 0.0015);
        assert!(json["at_most"].is_null(), "nobody has estimated the job");
        assert_eq!(
            report.list[0].at_most.as_ref().map(AtMost::text).unwrap_or_default(),
            "at most 4.0 KiB read from copies in 12 requests, 0.0015 US dollars, about 0.0 s"
        );
    }

    #[test]
    fn a_report_is_complete_when_nothing_is_missing_and_nothing_was_left_out() {
        let all = [("a", TargetState::Done), ("b", TargetState::Done)];
        let mut done = update(JobState::Done, &all);
        let mut picture = Picture::default();
        picture.take(done.clone());
        assert!(picture.report().is_complete());
        assert!(!picture.report().lines().concat().contains("retention"));
        let mut half = Picture::default();
        half.take(update(JobState::Running, &all[..1]));
        assert!(half.report().lines().concat().contains("the points of 1 databases"));
        if let Some(job) = &mut done.job {
            job.unplanned = vec![v1::Unplanned { database: None, reason: "too old".into() }];
        }
        picture.take(done);
        assert!(!picture.report().is_complete());
        assert!(picture.report().lines().iter().any(|line| line.ends_with("left out: too old")));
    }
}
