//! From what was asked to a list of databases, each with its position and its wave.

use super::cost::{Cost, Pace};
use super::model::{JobId, Mode, Record, Spec, Stays, Target};
use super::selector::{Selection, SelectorError};
use super::view;
use super::waves::{self, WaveError};
use crate::buffer::WalBuffer;
use crate::copies::Wait;
use crate::fleet::Fleet;
use crate::restore::{self, Request, Restores};
use futures_util::StreamExt;
use std::sync::Arc;
use walhub_common::{AgentName, DatabaseKey, Txid, clock};
use walhub_proto::v1;
use walhub_proto::v1::job_request::Point;
use walhub_proto::v1::selector::By;
use walhub_store::restore as planning;
use walhub_store::restore::source::BUFFER;
use walhub_store::restore::{Listing, Reach};

/// Databases of one job.
const MAX_TARGETS: usize = 50_000;
/// Databases whose point is looked up at one time.
const LOOKUPS: usize = 16;
/// Databases at one time, when nothing is said.
const PARALLELISM: u32 = 16;
const MAX_PARALLELISM: u32 = 1024;
const MAX_ID_BYTES: usize = 64;
const MAX_CHECKS: usize = 64;
const MAX_CHECK_BYTES: usize = 4096;

/// Why there is no plan.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanFault {
    /// Which databases.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// In which waves.
    #[error(transparent)]
    Wave(#[from] WaveError),
    /// Another part of the request.
    #[error("{0}")]
    Request(&'static str),
    /// Nothing matches.
    #[error("no database of this hub matches")]
    Nothing,
    /// Too much matches.
    #[error("{0} databases match, a job has at most {MAX_TARGETS}: choose fewer")]
    TooMany(usize),
}

/// What is asked for, checked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub(super) request: v1::JobRequest,
    pub(super) selection: Selection,
    pub(super) point: planning::Target,
    pub(super) mode: Mode,
    pub(super) parallelism: u32,
}

/// A plan: what a job would do, or does.
#[derive(Clone, Debug)]
pub struct Planned {
    pub(super) asked: Asked,
    /// By wave and name.
    pub targets: Vec<Target>,
    /// What matches and has no such point, and why.
    pub unplanned: Vec<(DatabaseKey, String)>,
    /// Number of waves.
    pub waves: u32,
    /// Nothing takes the points away as long as these live, however long whoever asked thinks about it.
    pub(super) waits: Arc<Vec<Wait>>,
}

impl Planned {
    /// As a value for people.
    pub fn wire(&self) -> v1::JobPlan {
        view::plan(self)
    }

    pub(super) fn pace(&self) -> Pace {
        let Asked { mode, parallelism, request, .. } = &self.asked;
        let (node_rate, total_rate) = (request.node_bytes_per_second, request.total_bytes_per_second);
        Pace { mode: *mode, parallelism: *parallelism, node_rate, total_rate }
    }

    /// The first record of a job that carries it out, and what waits for its points until then.
    pub(super) fn record(self, id: JobId, operator: String) -> (Record, Arc<Vec<Wait>>) {
        let Planned { asked, targets, unplanned, waves, waits } = self;
        let request = asked.request;
        let (mut names, mut labels) = (Vec::new(), Vec::new());
        for selector in request.selectors {
            match selector.by {
                Some(By::Name(text)) => names.push(text),
                Some(By::Labels(text)) => labels.push(text),
                None => {}
            }
        }
        let (timestamp_ms, txid) = match request.point {
            Some(Point::TimestampMs(ms)) => (Some(ms), None),
            Some(Point::Txid(txid)) => (None, Some(txid)),
            None => (None, None),
        };
        let spec = Spec {
            id,
            request_id: request.request_id,
            operator,
            started_ms: clock::now_ms(),
            names,
            labels,
            timestamp_ms,
            txid,
            mode: asked.mode,
            wave_words: request.waves,
            waves,
            max_failures: request.max_failures,
            parallelism: asked.parallelism,
            node_rate: request.node_bytes_per_second,
            total_rate: request.total_bytes_per_second,
            checks: request.checks,
            unplanned: unplanned.into_iter().map(|(key, reason)| (key.to_string(), reason)).collect(),
        };
        (Record::Begun { spec: Box::new(spec), targets }, waits)
    }
}

impl Asked {
    /// Checks a request.
    pub fn new(request: v1::JobRequest) -> Result<Asked, PlanFault> {
        let selection = Selection::parse(&request.selectors)?;
        let point = match request.point {
            None => planning::Target::Latest,
            Some(Point::TimestampMs(ms)) => planning::Target::TimestampMs(ms),
            Some(Point::Txid(txid)) => {
                let txid = Txid::new(txid).ok_or(PlanFault::Request("txid: transactions count from 1"))?;
                planning::Target::Txid(txid)
            }
        };
        let mode = match v1::OrderMode::try_from(request.mode) {
            Ok(v1::OrderMode::InPlace) => Mode::InPlace,
            Ok(v1::OrderMode::Replace) => Mode::Replace,
            Ok(v1::OrderMode::Unspecified) | Err(_) => {
                return Err(PlanFault::Request("mode: in place, or replace"));
            }
        };
        if request.request_id.len() > MAX_ID_BYTES {
            return Err(PlanFault::Request("request_id: at most 64 characters"));
        }
        if request.parallelism > MAX_PARALLELISM {
            return Err(PlanFault::Request("parallelism: at most 1024"));
        }
        if request.checks.len() > MAX_CHECKS || request.checks.iter().any(|c| c.len() > MAX_CHECK_BYTES) {
            return Err(PlanFault::Request("checks: at most 64, of at most 4096 bytes"));
        }
        waves::assign(&[], &request.waves)?;
        let parallelism = if request.parallelism == 0 { PARALLELISM } else { request.parallelism };
        Ok(Asked { selection, point, mode, parallelism, request })
    }
}

/// Makes plans.
#[derive(Clone)]
pub struct Planner {
    buffer: Arc<dyn WalBuffer>,
    fleet: Arc<Fleet>,
    restores: Restores,
}

impl Planner {
    /// Over the databases and the files of this hub.
    pub fn new(buffer: Arc<dyn WalBuffer>, fleet: Arc<Fleet>, restores: Restores) -> Planner {
        Planner { buffer, fleet, restores }
    }

    /// Looks every database's point up. Changes nothing; dropping it gives it up.
    pub async fn plan(&self, asked: Asked) -> Result<Planned, PlanFault> {
        let labels = self.fleet.labels.all();
        let mut matching: Vec<DatabaseKey> =
            self.buffer.databases().into_iter().map(|database| database.key).collect();
        matching.retain(|key| asked.selection.matches(key, labels.get(&key.agent)));
        matching.sort_unstable();
        match matching.len() {
            0 => return Err(PlanFault::Nothing),
            many if many > MAX_TARGETS => return Err(PlanFault::TooMany(many)),
            1 => {}
            _ if matches!(asked.point, planning::Target::Txid(_)) => {
                return Err(PlanFault::Request("a transaction is the point of one database; use a time"));
            }
            _ => {}
        }
        let mut found: Vec<(DatabaseKey, Result<Found, String>)> = futures_util::stream::iter(matching)
            .map(|key| async {
                let found = self.look_up(&key, &asked).await;
                (key, found)
            })
            .buffered(LOOKUPS)
            .collect()
            .await;
        let (mut targets, mut unplanned, mut waits) = (Vec::new(), Vec::new(), Vec::new());
        for (database, found) in found.drain(..) {
            match found {
                Ok(Found { target, wait }) => {
                    targets.push(target);
                    waits.push(wait);
                }
                Err(reason) => unplanned.push((database, reason)),
            }
        }
        let waves = arrange(&mut targets, &asked.request.waves)?;
        Ok(Planned { asked, targets, unplanned, waves, waits: Arc::new(waits) })
    }

    async fn look_up(&self, database: &DatabaseKey, asked: &Asked) -> Result<Found, String> {
        let sources = self.restores.select(None).map_err(|e| e.to_string())?;
        let _pin = self.restores.pins().pin(database).await;
        let request = Request { database: database.clone(), target: asked.point, after: None, source: None };
        let prepared = self.restores.prepare(&sources, &request).await.map_err(|e| e.to_string())?;
        let until_ms = restore::time_ms(prepared.plan.files.last(), prepared.header.as_ref());
        // Of the plan nothing is kept but its sizes: a job may have thousands of databases.
        let kind = |name: &planning::SourceName| {
            sources.iter().find(|source| source.name() == name).map_or(BUFFER, |source| source.kind())
        };
        let cost = Cost::of(planning::estimate(&prepared.plan, kind), asked.mode);
        match prepared.header.and_then(|header| header.provenance) {
            Some(known) => {
                let reached = prepared.plan.reached;
                let until = (reached.get(), known.post.get());
                let stays = stays(&prepared.listings, reached);
                let target = Target { database: database.clone(), wave: 0, until, until_ms, cost, stays };
                // While the database is pinned, so that nobody deletes between the look and the wait.
                let by = "a job that is being planned".into();
                let wait = self.fleet.board.awaited().wait(database, target.need(), &by);
                Ok(Found { target, wait })
            }
            None => {
                Err("nobody took a checksum at that point (no walhub wrote it), so a node could not prove \
                         that it is there; restore it with -o or --to"
                    .into())
            }
        }
    }
}

struct Found {
    target: Target,
    wait: Wait,
}

/// What leads to `txid` beside the files of a single destination. Pure.
fn stays(listings: &[Listing], txid: Txid) -> Stays {
    let (buffer, places): (Vec<&Listing>, Vec<&Listing>) =
        listings.iter().partition(|listing| listing.source.as_str() == BUFFER);
    let nearest = |place: &&Listing| {
        let alone = std::slice::from_ref(*place);
        Reach::new(alone, None).points().rfind(|point| *point <= txid)
    };
    let best = places.into_iter().map(|place| (nearest(&place), place)).max_by_key(|(nearest, _)| *nearest);
    let nearest = best.and_then(|(nearest, _)| nearest);
    if nearest == Some(txid) {
        return Stays::default();
    }
    let together: Vec<Listing> = best.map(|(_, place)| place).into_iter().chain(buffer).cloned().collect();
    let everything = Reach::new(&together, None).chain_to(txid).is_none();
    Stays { buffered_from: Some(Txid::following(nearest).get()), everything }
}

/// Gives every database, sorted by name, its wave, and sorts by it; the number of waves.
fn arrange(targets: &mut [Target], wave_words: &[String]) -> Result<u32, WaveError> {
    let mut agents: Vec<AgentName> = targets.iter().map(|target| target.database.agent.clone()).collect();
    agents.dedup();
    let waves = waves::assign(&agents, wave_words)?;
    for target in targets.iter_mut() {
        // Sorted by name is sorted by agent.
        let at = agents.partition_point(|agent| *agent < target.database.agent);
        target.wave = waves[at];
    }
    targets.sort_by(|a, b| (a.wave, &a.database).cmp(&(b.wave, &b.database)));
    Ok(waves.last().copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::{Level, TxidRange};
    use walhub_store::destinations::Listed;

    #[test]
    fn the_databases_of_a_node_are_in_one_wave() {
        let mut targets: Vec<Target> = (0..40)
            .map(|n| Target {
                database: format!("n{:02}/d{}", n / 4, n % 4).parse().unwrap(),
                wave: 0,
                until: (1, 1),
                until_ms: 0,
                cost: Cost::default(),
                stays: Stays::default(),
            })
            .collect();
        let waves = arrange(&mut targets, &["1".into(), "50%".into()]).unwrap();
        assert_eq!(waves, 3);
        let size = |wave| targets.iter().filter(|t| t.wave == wave).count();
        assert_eq!([size(1), size(2), size(3)], [4, 16, 20]);
        assert!(targets.iter().all(|t| (t.wave == 1) == (t.database.agent.as_str() == "n00")));
    }

    #[test]
    fn what_no_destination_leads_to_is_kept_in_the_buffer() {
        let listing = |name: &str, files: &[(u8, u64, u64)]| {
            let file = |&(level, min, max): &(u8, u64, u64)| Listed {
                level: Level::new(level).unwrap(),
                range: TxidRange::from_raw(min, max).unwrap(),
                size: 1,
                time_ms: 0,
            };
            Listing { source: name.parse().unwrap(), files: files.iter().map(file).collect() }
        };
        let stays = |listings: &[Listing], txid| {
            let Stays { buffered_from, everything } = stays(listings, Txid::new(txid).unwrap());
            (buffered_from, everything)
        };
        let buffer = listing(BUFFER, &[(0, 4, 4), (0, 5, 5), (0, 6, 6), (0, 7, 7)]);
        let near = listing("near", &[(9, 1, 3), (0, 4, 6)]);
        let far = listing("far", &[(9, 1, 3), (0, 4, 4)]);
        let all = [buffer.clone(), near.clone(), far.clone()];
        assert_eq!(stays(&all, 3), (None, false));
        assert_eq!(stays(&all, 6), (None, false), "a destination has it");
        assert_eq!(stays(&all, 5), (Some(5), false), "inside of a file of one, behind the end of the other");
        assert_eq!(stays(&all, 7), (Some(7), false));
        assert_eq!(stays(&[buffer.clone(), listing("new", &[])], 5), (Some(1), true), "nothing leads there");
        let young = listing(BUFFER, &[(0, 1, 1), (0, 2, 2)]);
        assert_eq!(stays(&[young], 2), (Some(1), false));
        // One place has the beginning, another one the end.
        let end = listing("end", &[(0, 4, 5)]);
        assert_eq!(stays(&[listing("begin", &[(9, 1, 3)]), end], 5), (Some(4), true));
    }

    #[test]
    fn requests_are_checked_before_anything_is_looked_up() {
        let name = |text: &str| v1::Selector { by: Some(v1::selector::By::Name(text.into())) };
        let good = v1::JobRequest {
            selectors: vec![name("*/*")],
            mode: v1::OrderMode::InPlace.into(),
            ..v1::JobRequest::default()
        };
        assert_eq!(Asked::new(good.clone()).unwrap().parallelism, PARALLELISM);
        let bad = [
            v1::JobRequest { selectors: Vec::new(), ..good.clone() },
            v1::JobRequest { mode: 0, ..good.clone() },
            v1::JobRequest { mode: 9, ..good.clone() },
            v1::JobRequest { waves: vec!["x".into()], ..good.clone() },
            v1::JobRequest { point: Some(Point::Txid(0)), ..good.clone() },
            v1::JobRequest { parallelism: 100_000, ..good.clone() },
            v1::JobRequest { request_id: "x".repeat(65), ..good.clone() },
            v1::JobRequest { checks: vec![String::new(); 65], ..good },
        ];
        for request in bad {
            assert!(Asked::new(request.clone()).is_err(), "{request:?}");
        }
    }
}
