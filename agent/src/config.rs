//! `agent.yml`: one file, every fault at once with its line.
//!
//! What is a fault: a value that can never work. What is not: a database that is missing or unreadable right now; that
//! is status, because it may become right while the agent runs.

use crate::database::{PARTS_ABOVE, RestorePoints};
use crate::discover::{Source, default_name};
use crate::ship::connect::HubAddress;
use crate::ship::throttle::UploadLimit;
use glob::Pattern;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use walhub_common::config::{Document, Faults, Section, parts, value};
use walhub_common::ltx::Compression;
use walhub_common::telemetry::LogFormat;
use walhub_common::tls::{Connector, Role, TlsMaterial, TlsPaths};
use walhub_common::{AgentName, DatabaseName};

/// Where state lies when the file does not say.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/walhub-agent";
/// Frames of WAL after which they are brought into the database; SQLite's own default.
pub const DEFAULT_CHECKPOINT_FRAMES: u32 = 1000;
/// Bytes of WAL past which it is made to restart, its transactions spooled when the hub cannot take them.
pub const DEFAULT_WAL_LIMIT: u64 = 256 << 20;
/// Bytes that all spools together may take.
pub const DEFAULT_SPOOL_MAX: u64 = 1 << 30;
/// Time between two readings of a stream of commits.
pub const DEFAULT_PACE: Duration = Duration::from_millis(250);
/// Time between slow polls.
pub const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// How to get a certificate.
const ISSUE: &str = "`hubctl cert issue --agent NAME`";

const CHECKPOINT_FRAMES: std::ops::RangeInclusive<u32> = 16..=1_000_000;
const WAL_LIMIT: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 40);
const SPOOL_MAX: std::ops::RangeInclusive<u64> = 0..=(1 << 44);
const SNAPSHOT_RATE: std::ops::RangeInclusive<u64> = (64 << 10)..=(1 << 40);
const UPLOAD_LIMIT: std::ops::RangeInclusive<u64> = (16 << 10)..=(1 << 40);
const PACE: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(2);
const POLL_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `host:port` of the hub.
    pub hub: String,
    /// Name in the hub's certificate when it is not the host.
    pub server_name: Option<String>,
    /// Certificate files.
    pub tls: TlsPaths,
    /// State folder.
    pub state_dir: PathBuf,
    /// What to follow.
    pub sources: Vec<Source>,
    /// Frames of WAL after which they are brought into the database.
    pub checkpoint_frames: u32,
    /// Bytes of WAL past which it is made to restart, its transactions spooled when the hub cannot take them.
    pub wal_limit: u64,
    /// Bytes that the spools of all databases together may take; 0: none.
    pub spool_max: u64,
    /// Bytes of a database read per second for its first snapshot; `None`: as fast as it may.
    pub snapshot_rate: Option<u64>,
    /// Page bytes above which a first snapshot is sent in parts. No key of the file: for tests.
    pub parts_above: u64,
    /// Time between slow polls.
    pub poll_interval: Duration,
    /// Bytes per second that may leave for the hub; `None`: as many as the network takes.
    pub upload_limit: Option<UploadLimit>,
    /// How hard pages are compressed.
    pub compression: Compression,
    /// Time between two readings of a stream of commits.
    pub pace: Duration,
    /// What can be restored of a stream of commits.
    pub restore_points: RestorePoints,
    /// Log lines.
    pub log_format: LogFormat,
    /// Log filter.
    pub log_level: String,
}

/// Who this node is and how it reaches the hub, from the certificate files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name in the certificate.
    pub agent: AgentName,
    /// The way to the hub.
    pub hub: HubAddress,
}

/// Whether certificate files are looked at as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Certificates {
    /// They must be readable and belong to an agent.
    Check,
    /// For commands that stay on this machine.
    Ignore,
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path, certificates: Certificates) -> Result<Config, Faults> {
        let document = Document::read(path)?;
        document.check(parse(&document, certificates))
    }

    /// Checks a text that came from `path`.
    pub fn parse(path: &Path, text: &str, certificates: Certificates) -> Result<Config, Faults> {
        let document = Document::parse(path, text)?;
        document.check(parse(&document, certificates))
    }

    /// Loads the certificates.
    pub fn identity(&self) -> Result<Identity, String> {
        let material = TlsMaterial::load(self.tls.clone()).map_err(|e| e.to_string())?;
        let agent = agent_of(&material)?;
        let connector = Connector::open(self.tls.clone()).map_err(|e| e.to_string())?;
        let hub = HubAddress {
            address: self.hub.clone(),
            server_name: self.server_name.clone(),
            connector: Arc::new(connector),
        };
        Ok(Identity { agent, hub })
    }
}

fn agent_of(material: &TlsMaterial) -> Result<AgentName, String> {
    match material.identity() {
        Ok(identity) if identity.role == Role::Agent => Ok(identity.name.clone()),
        Ok(identity) => {
            Err(format!("the certificate is {identity}'s, and an agent needs its own; {ISSUE} makes one"))
        }
        Err(e) => Err(e.to_string()),
    }
}

fn parse(document: &Document, certificates: Certificates) -> Option<Config> {
    let mut root = document.root();
    let hub = root.required("hub", value::host_port);
    let server_name = root.optional("server-name", value::string);
    let role = (Role::Agent, ISSUE);
    let tls = parts::tls(root.section("tls"), (certificates == Certificates::Check).then_some(role));
    let state_dir = root.or("state-dir", DEFAULT_STATE_DIR.into(), value::path);
    let checkpoint_frames = root
        .or("checkpoint-frames", DEFAULT_CHECKPOINT_FRAMES, |text| value::int_in(CHECKPOINT_FRAMES)(text));
    let wal_limit = root.or("wal-limit", DEFAULT_WAL_LIMIT, value::bytes_in(WAL_LIMIT));
    let spool_max = root.or("spool-max", DEFAULT_SPOOL_MAX, value::bytes_in(SPOOL_MAX));
    let snapshot_rate = root.optional("snapshot-rate", value::bytes_in(SNAPSHOT_RATE));
    let poll_interval = root.or("poll-interval", DEFAULT_POLL_INTERVAL, value::duration_in(POLL_INTERVAL));
    let upload_limit = root.optional("upload-limit", value::bytes_in(UPLOAD_LIMIT)).map(UploadLimit);
    let compression = root.or("compression-level", Compression::default(), |text| {
        let level = value::int_in(0..=Compression::MAX)(text)?;
        Compression::new(level).ok_or_else(|| format!("{level} is no level"))
    });
    let pace = root.or("pace", DEFAULT_PACE, value::duration_in(PACE));
    let restore_points = root.or("restore-points", RestorePoints::default(), |text| match text {
        "window" => Ok(RestorePoints::Window),
        "transaction" => Ok(RestorePoints::Transaction),
        other => Err(format!("{other:?} is neither window nor transaction")),
    });
    let (log_level, log_format) = parts::log(root.section("log"));
    let sources = sources(&mut root);
    root.finish();
    Some(Config {
        hub: hub?,
        server_name,
        tls: tls?,
        state_dir: absolute(state_dir),
        sources,
        checkpoint_frames,
        wal_limit,
        spool_max,
        snapshot_rate,
        parts_above: PARTS_ABOVE,
        poll_interval,
        upload_limit,
        compression,
        pace,
        restore_points,
        log_format,
        log_level,
    })
}

fn sources(root: &mut Section<'_>) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut by_name: BTreeMap<DatabaseName, PathBuf> = BTreeMap::new();
    let mut by_path: BTreeMap<PathBuf, DatabaseName> = BTreeMap::new();
    let items = root.sections("databases");
    if items.is_empty() {
        root.fault_at(
            "databases",
            "list what to follow: `- path: FILE`, or `- dir: FOLDER` with a `pattern:`",
        );
    }
    for mut item in items {
        let source = match (item.has("path"), item.has("dir")) {
            (true, false) => path_source(&mut item),
            (false, true) => folder_source(&mut item),
            (true, true) => {
                item.fault("has both `path:` and `dir:`; make two entries of it");
                continue;
            }
            (false, false) => {
                item.fault("needs a `path:` (one file) or a `dir:` (a folder)");
                continue;
            }
        };
        if let Some(Source::Path { path, name }) = &source {
            if let Some(other) = by_name.insert(name.clone(), path.clone()) {
                let text = format!("the name {name} is taken by {}; give this one another", other.display());
                let key = if item.has("name") { "name" } else { "path" };
                item.fault_at(key, text);
            } else if let Some(other) = by_path.insert(path.clone(), name.clone()) {
                item.fault_at("path", format!("is followed as {other} already"));
            }
        }
        item.finish();
        sources.extend(source);
    }
    sources
}

fn path_source(item: &mut Section<'_>) -> Option<Source> {
    let path = item.required("path", value::path).map(absolute);
    let name = item.optional("name", value::parsed::<DatabaseName>);
    let path = path?;
    let name = match name {
        Some(name) => name,
        None if item.has("name") => return None,
        None => match default_name(&path) {
            Some(name) => name,
            None => {
                item.fault_at("path", "its file name makes no database name; add a `name:`");
                return None;
            }
        },
    };
    Some(Source::Path { path, name })
}

fn folder_source(item: &mut Section<'_>) -> Option<Source> {
    let folder = item.required("dir", value::path).map(absolute);
    let pattern = item.required("pattern", |text| {
        if text.contains('/') {
            return Err(format!("{text:?} contains a folder; a pattern matches file names, and `recursive: true` looks into folders below"));
        }
        Pattern::new(text).map_err(|e| format!("{text:?} is not a pattern such as *.db: {e}"))
    });
    let recursive = item.or("recursive", false, value::bool);
    let prefix = item.or("prefix", String::new(), |text| {
        // A prefix must be able to begin a name.
        DatabaseName::new(format!("{text}x")).map(|_| text.to_owned()).map_err(|e| e.to_string())
    });
    Some(Source::Folder { folder: folder?, pattern: pattern?, recursive, prefix })
}

/// A relative path means the folder the agent was started in.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Faults> {
        Config::parse(Path::new("agent.yml"), text, Certificates::Ignore)
    }

    const HEAD: &str = "hub: hub.example:9443\ntls: {ca: a, cert: b, key: c}\nstate-dir: /s\n";

    #[test]
    fn a_small_file_gets_defaults() {
        let config = parse(&format!("{HEAD}databases:\n  - path: /data/app.db\n")).unwrap();
        assert_eq!(config.checkpoint_frames, 1000);
        assert_eq!(config.poll_interval, Duration::from_secs(5));
        assert_eq!((config.wal_limit, config.spool_max), (256 << 20, 1 << 30));
        assert_eq!((config.snapshot_rate, config.parts_above), (None, 64 << 20));
        assert_eq!((config.upload_limit, config.compression), (None, Compression::FAST));
        assert_eq!((config.pace, config.restore_points), (Duration::from_millis(250), RestorePoints::Window));
        let name = DatabaseName::new("app.db").unwrap();
        assert_eq!(config.sources, [Source::Path { path: "/data/app.db".into(), name }]);
    }

    #[test]
    fn a_full_file_is_understood() {
        let text = "
hub: '[::1]:9443'
server-name: hub.example
tls: {ca: a, cert: b, key: c}
state-dir: /s
checkpoint-frames: 50
wal-limit: 64MiB
spool-max: 0B
snapshot-rate: 20MiB
poll-interval: 500ms
upload-limit: 2MiB
compression-level: 9
pace: 50ms
restore-points: transaction
log: {level: debug, format: json}
databases:
  - {path: /data/one.db, name: one}
  - {dir: /tenants, pattern: '*.sqlite', recursive: true, prefix: eu-}
";
        let config = parse(text).unwrap();
        assert_eq!(config.server_name.as_deref(), Some("hub.example"));
        assert_eq!((config.wal_limit, config.spool_max, config.checkpoint_frames), (64 << 20, 0, 50));
        assert_eq!(config.snapshot_rate, Some(20 << 20));
        assert_eq!(config.upload_limit, Some(UploadLimit(2 << 20)));
        assert_eq!((config.compression.level(), config.restore_points), (9, RestorePoints::Transaction));
        assert_eq!(config.pace, Duration::from_millis(50));
        assert_eq!((config.log_level.as_str(), config.log_format), ("debug", LogFormat::Json));
        let folder = Source::Folder {
            folder: "/tenants".into(),
            pattern: Pattern::new("*.sqlite").unwrap(),
            recursive: true,
            prefix: "eu-".into(),
        };
        assert_eq!(config.sources[1], folder);
    }

    #[test]
    fn all_faults_come_at_once_with_their_lines() {
        let text = "\
hub: no-port
tls: {ca: a, cert: b}
poll-intervall: 5s
wal-limit: plenty
upload-limit: 100
compression-level: 13
restore-points: row
databases:
  - path: /srv/one.db
    name: app.db
  - path: /srv/two.db
    name: app.db
  - name: nowhere
  - {dir: /d, pattern: 'a/*.db'}
  - {dir: /d, path: /p}
  - {path: /x, name: 'a b'}
  - {path: /y, name: y}
  - {path: /y, name: z}
";
        let faults = parse(text).unwrap_err().to_string();
        let lines: Vec<&str> = faults.lines().collect();
        let expected = [
            (1, "no-port"),
            (2, "tls.key: is missing"),
            (3, "did you mean \"poll-interval\""),
            (4, "plenty"),
            (5, "upload-limit"),
            (6, "compression-level"),
            (7, "neither window nor transaction"),
            (12, "the name app.db is taken by /srv/one.db"),
            (13, "needs a `path:`"),
            (14, "contains a folder"),
            (15, "both `path:` and `dir:`"),
            (16, "only letters"),
            (18, "is followed as y already"),
        ];
        for (line, words) in expected {
            let found =
                lines.iter().any(|l| l.starts_with(&format!("agent.yml:{line}:")) && l.contains(words));
            assert!(found, "line {line} {words:?} in\n{faults}");
        }
        assert_eq!(lines.len(), expected.len(), "{faults}");
    }

    #[test]
    fn certificates_are_looked_at_on_request() {
        let text = format!("{HEAD}databases:\n  - path: /data/app.db\n");
        let faults =
            Config::parse(Path::new("agent.yml"), &text, Certificates::Check).unwrap_err().to_string();
        for key in ["tls.ca", "tls.cert", "tls.key"] {
            assert!(faults.contains(&format!("agent.yml:2: {key}: ")), "{faults}");
        }
    }

    #[test]
    fn the_example_file_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/agent.yml");
        let config = Config::read(&path, Certificates::Ignore).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.sources.len(), 2);
    }

    #[test]
    fn nothing_to_follow_is_a_fault() {
        assert!(parse(HEAD).unwrap_err().to_string().contains("list what to follow"));
    }
}
