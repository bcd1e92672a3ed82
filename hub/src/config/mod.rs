//! `hub.yml`: one file, every fault at once with its line.
//!
//! A fault is a value that can never work; a destination that does not answer right now is status, not a fault.

mod buffer;
mod compaction;
mod databases;
mod destination;
mod drills;
mod layout;
mod limits;
mod metrics;
mod mirror;
mod object_store;
mod policy;
mod retention;

pub use buffer::{BufferConfig, DEFAULT_BUFFER_BYTES};
pub use compaction::{DEFAULT_LEVELS, DEFAULT_SNAPSHOT_INTERVAL};
pub use destination::DestinationEntry;
pub use layout::Layout;
pub use limits::LaneLimits;
pub use mirror::DEFAULT_MIRROR_INTERVAL;
pub use retention::Retention;

use crate::copies::{Policy, Selector};
use crate::drills::Rules;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use walhub_common::config::{Document, Faults, Section, parts, value};
use walhub_common::telemetry::LogFormat;
use walhub_common::tls::{Role, TlsPaths};

/// Where the hub keeps its buffer and state when the file does not say.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/walhub-hub";
/// Time between two flushes to a destination when the file does not say.
pub const DEFAULT_SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// The file without its secrets.
    pub skeleton: Arc<str>,
    /// Address to listen on; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Buffer and state.
    pub data_dir: PathBuf,
    /// Certificate files.
    pub tls: TlsPaths,
    /// Bound of the buffer, and what happens there.
    pub buffer: BufferConfig,
    /// Windows of compaction, level 1 first; each is a multiple of the one before.
    pub levels: Vec<Duration>,
    /// Least time between two mirrors of the hub at its destinations.
    pub mirror_interval: Duration,
    /// What restores are tried for, and how often.
    pub drills: Rules,
    /// Where metrics are asked for; port 0 lets the system choose.
    pub metrics: Option<SocketAddr>,
    /// What makes a transaction durable, where no selector says it.
    pub policy: Policy,
    /// What applies to some databases only; the first one that matches counts.
    pub databases: Vec<Selector>,
    /// Where copies go, in the order of the file; names are unique.
    pub destinations: Vec<DestinationEntry>,
    /// Log filter.
    pub log_level: String,
    /// Log lines.
    pub log_format: LogFormat,
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Config, Faults> {
        let document = Document::read(path)?;
        document.check(parse(&document, Files::Check))
    }
}

#[cfg(test)]
impl Config {
    /// From a text, without a look at files.
    pub(crate) fn from_text(text: &str) -> Result<Config, Faults> {
        let document = Document::parse("hub.yml", text)?;
        document.check(parse(&document, Files::Ignore))
    }
}

/// Whether certificate files are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Files {
    Check,
    #[cfg(test)]
    Ignore,
}

fn parse(document: &Document, files: Files) -> Option<Config> {
    let mut root = document.root();
    let listen = root.required("listen", value::socket_addr);
    let data_dir: PathBuf = root.or("data-dir", DEFAULT_DATA_DIR.into(), value::path);
    let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
    if files == Files::Check
        && let Err(reason) = destination::can_be_made(&data_dir)
    {
        root.fault_at("data-dir", reason);
    }
    let role = (Role::Hub, "`hubctl cert issue --hub NAME --host HOST`");
    let tls = parts::tls(root.section("tls"), (files == Files::Check).then_some(role));
    let buffer = buffer::parse(root.section("buffer"));
    let levels = compaction::levels(&mut root);
    let mirror_interval = mirror::interval(&mut root);
    let drills = drills::parse(&mut root);
    let metrics = metrics::listen(&mut root, listen);
    let (log_level, log_format) = parts::log(root.section("log"));
    let destinations = destinations(&mut root, files);
    let policy = policy::parse(root.section("policy"), destinations.as_deref());
    let databases = databases::parse(&mut root, policy, destinations.as_deref());
    root.finish();
    Some(Config {
        path: document.path().to_owned(),
        skeleton: document.skeleton().into(),
        listen: listen?,
        data_dir,
        tls: tls?,
        buffer,
        levels,
        mirror_interval,
        drills,
        metrics,
        policy,
        databases,
        destinations: destinations?,
        log_level,
        log_format,
    })
}

/// `None` when one of them has a fault, so that no conclusion is drawn from the rest.
fn destinations(root: &mut Section<'_>, files: Files) -> Option<Vec<DestinationEntry>> {
    let items = root.sections("destinations");
    if items.is_empty() {
        root.fault_at(
            "destinations",
            "list where copies go: `- {name: disk, type: file, path: /srv/walhub}`",
        );
        return None;
    }
    let mut taken = destination::Taken::new(files == Files::Check);
    let mut entries: Vec<Option<DestinationEntry>> = Vec::new();
    for item in items {
        entries.push(destination::parse(item, &mut taken));
    }
    entries.into_iter().collect()
}

#[cfg(any(test, feature = "testutil"))]
impl DestinationEntry {
    /// What `{name: NAME, type: file, path: PATH}` gives.
    pub fn folder(name: &str, path: &Path) -> Self {
        let text = format!("{{name: {name}, type: file, path: {}}}", path.display());
        let document = Document::parse("hub.yml", &text).expect("plain YAML");
        let entry = destination::parse(document.root(), &mut destination::Taken::new(false));
        document.check(entry).expect("a good entry")
    }
}

#[cfg(test)]
mod tests;
