//! One entry of `destinations:`, with Litestream's keys where it has them.

use super::layout::{self, Layout};
use super::limits::{self, LaneLimits};
use super::retention::{self, Retention};
use super::{DEFAULT_SYNC_INTERVAL, compaction, object_store};
use crate::copies::policy::{LIVE_MEDIA, Site};
use crc_fast::CrcAlgorithm;
use rustix::fs::Access;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;
use walhub_common::DestinationName;
use walhub_common::config::{Section, value};
use walhub_store::destinations::config::{DestinationConfig, FileConfig};
use walhub_store::restore::source::BUFFER;

pub(super) const SYNC_INTERVAL: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(24 * 3600);

/// One checked destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DestinationEntry {
    /// Its name.
    pub name: DestinationName,
    /// Least time between two flushes.
    pub sync_interval: Duration,
    /// What it may be asked for.
    pub limits: LaneLimits,
    /// Least time between two snapshots of a database.
    pub snapshot_interval: Duration,
    /// What it counts for in the policy.
    pub site: Site,
    /// How its files lie there.
    pub layout: Layout,
    /// Where it is.
    pub config: DestinationConfig,
    /// The place as one line: equal for two entries that mean one place.
    pub place: String,
    /// Under which name the buffer keeps the cursors of this place. It does not depend on the name in the configuration:
    /// a renamed destination goes on where it was, and another place under an old name does not.
    pub cursor: DestinationName,
    /// What is kept there.
    pub retention: Retention,
}

impl DestinationEntry {
    /// True when `config`, from an address, means the same place.
    pub fn is_at(&self, config: &DestinationConfig) -> bool {
        place(config) == self.place
    }
}

#[derive(Clone, Copy)]
enum Kind {
    File,
    S3,
    Gcs,
    Abs,
}

const KINDS: [(&str, Kind); 4] =
    [("file", Kind::File), ("s3", Kind::S3), ("gcs", Kind::Gcs), ("abs", Kind::Abs)];

/// What the entries before have taken.
pub(super) struct Taken {
    /// Paths are looked at.
    look: bool,
    names: Vec<DestinationName>,
    places: Vec<(String, DestinationName)>,
}

impl Taken {
    pub(super) fn new(look: bool) -> Self {
        Self { look, names: Vec::new(), places: Vec::new() }
    }
}

/// Reads one entry.
pub(super) fn parse(mut item: Section<'_>, taken: &mut Taken) -> Option<DestinationEntry> {
    let name = item.required("name", value::parsed::<DestinationName>);
    if let Some(name) = &name {
        if taken.names.contains(name) {
            item.fault_at("name", format!("two destinations are called {name}; give this one another name"));
        }
        if name.as_str() == BUFFER {
            item.fault_at(
                "name",
                "\"buffer\" means the hub's own buffer in `--source`; give this one another name",
            );
        }
        taken.names.push(name.clone());
    }
    let layout = layout::parse(&mut item);
    let kind = item.required("type", value::one_of(&KINDS));
    let sync_interval = item.or("sync-interval", DEFAULT_SYNC_INTERVAL, value::duration_in(SYNC_INTERVAL));
    let snapshot_interval = compaction::snapshot_interval(&mut item);
    let Some(kind) = kind else {
        // Without a type the other keys cannot be judged: they are not faults of their own.
        return None;
    };
    let (media, away) = match kind {
        Kind::File => (LIVE_MEDIA, false),
        Kind::S3 | Kind::Gcs | Kind::Abs => ("object", true),
    };
    let limits = limits::parse(&mut item);
    let media = item.or("media", media.to_owned(), value::string);
    let offsite = item.or("offsite", away, value::bool);
    let retention = retention::parse(&mut item);
    let config = match kind {
        Kind::File => file(&mut item, taken.look),
        Kind::S3 => object_store::s3(&mut item),
        Kind::Gcs => object_store::gcs(&mut item),
        Kind::Abs => object_store::abs(&mut item),
    };
    let place = config.as_ref().map(place);
    if let (Some(name), Some(place)) = (&name, place.clone()) {
        match taken.places.iter().find(|(other, _)| *other == place) {
            Some((_, other)) => {
                let text = format!("is the place of {other} already: one copy must not count twice");
                item.fault_at("path", text);
            }
            None => taken.places.push((place, name.clone())),
        }
    }
    item.finish();
    let name = name?;
    let (config, place) = (config?, place?);
    let immutable = matches!(&config, DestinationConfig::S3(s3) if s3.object_lock.is_some());
    let site = Site { name: name.to_string(), media, offsite, immutable };
    let cursor = cursor(&config, &place);
    Some(DestinationEntry {
        name,
        sync_interval,
        limits,
        snapshot_interval,
        site,
        layout,
        config,
        place,
        cursor,
        retention,
    })
}

fn cursor(config: &DestinationConfig, place: &str) -> DestinationName {
    let digest = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, place.as_bytes());
    let name = format!("{}-{digest:016x}", config.kind());
    DestinationName::new(name).expect("BUG: letters and digits are a legal name")
}

/// Two entries of one place are one copy.
fn place(config: &DestinationConfig) -> String {
    match config {
        DestinationConfig::File(file) => format!("file {}", file.path.display()),
        DestinationConfig::S3(s3) => {
            format!("s3 {} {} {}", s3.endpoint.as_deref().unwrap_or_default(), s3.bucket, s3.prefix)
        }
        DestinationConfig::Gcs(gcs) => {
            format!("gcs {} {} {}", gcs.endpoint.as_deref().unwrap_or_default(), gcs.bucket, gcs.prefix)
        }
        DestinationConfig::Abs(abs) => {
            let (endpoint, account) = (abs.endpoint.as_deref(), abs.account_name.as_deref());
            format!("abs {} {} {}", endpoint.or(account).unwrap_or_default(), abs.bucket, abs.prefix)
        }
    }
}

fn file(item: &mut Section<'_>, look: bool) -> Option<DestinationConfig> {
    let path = item.required("path", value::path)?;
    let path = std::path::absolute(&path).unwrap_or(path);
    if look && let Err(reason) = can_be_made(&path) {
        item.fault_at("path", reason);
    }
    Some(DestinationConfig::File(FileConfig { path }))
}

/// A folder that is there and writable, or whose nearest ancestor is. Changes nothing.
pub(super) fn can_be_made(path: &Path) -> Result<(), String> {
    let found = path.ancestors().find_map(|at| std::fs::metadata(at).ok().map(|metadata| (at, metadata)));
    let Some((at, metadata)) = found else { return Err(format!("{} cannot be made", path.display())) };
    if !metadata.is_dir() {
        return Err(format!("{} is not a folder", at.display()));
    }
    rustix::fs::access(at, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let what = if at == path { "cannot be written" } else { "cannot be made" };
        format!("{} {what} ({}: {error}); correct the path or its owner", path.display(), at.display())
    })
}
