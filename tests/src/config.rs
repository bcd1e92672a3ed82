//! Configuration files as people write them: text, not the product's own types.

use crate::certs::Files;
use std::fmt::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// One destination of a hub.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Name.
    pub name: String,
    /// Milliseconds between flushes.
    pub sync_interval_ms: u64,
    /// Where.
    pub place: Place,
    /// Further keys, one per line.
    pub keys: Vec<String>,
}

/// Where a destination lies.
#[derive(Clone, Debug)]
pub enum Place {
    /// A folder.
    File(PathBuf),
    /// A bucket and a prefix in it.
    S3 {
        /// The server.
        server: crate::services::S3,
        /// The bucket.
        bucket: String,
        /// The prefix.
        prefix: String,
    },
    /// Another kind, all of it in the keys.
    Keys,
}

impl Destination {
    /// A folder that is flushed to every 100 ms.
    pub fn file(name: &str, path: &Path) -> Destination {
        Destination::new(name, Place::File(path.to_path_buf()))
    }

    /// A bucket that is flushed to every 100 ms.
    pub fn s3(name: &str, server: &crate::services::S3, bucket: &str, prefix: &str) -> Destination {
        let place =
            Place::S3 { server: server.clone(), bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        Destination::new(name, place)
    }

    /// A container of Azure that is flushed to every 100 ms.
    pub fn azure(name: &str, server: &crate::services::Azure, container: &str, prefix: &str) -> Destination {
        Destination::new(name, Place::Keys)
            .with("type: abs")
            .with(&format!("bucket: {container}"))
            .with(&format!("path: {prefix}"))
            .with(&format!("endpoint: {}", server.endpoint))
            .with(&format!("account-name: {}", server.account))
            .with(&format!("account-key: {}", server.key))
    }

    /// A bucket of Google's store that is flushed to every 100 ms.
    pub fn gcs(name: &str, server: &crate::services::Gcs, bucket: &str, prefix: &str) -> Destination {
        Destination::new(name, Place::Keys)
            .with("type: gcs")
            .with(&format!("bucket: {bucket}"))
            .with(&format!("path: {prefix}"))
            .with(&format!("endpoint: {}", server.endpoint))
            .with(&format!("credentials-file: {}", server.credentials))
    }

    fn new(name: &str, place: Place) -> Destination {
        Destination { name: name.to_owned(), sync_interval_ms: 100, place, keys: Vec::new() }
    }

    /// Another interval.
    #[must_use]
    pub fn every_ms(mut self, interval: u64) -> Destination {
        self.sync_interval_ms = interval;
        self
    }

    /// A further key, such as `offsite: true`.
    #[must_use]
    pub fn with(mut self, key: &str) -> Destination {
        self.keys.push(key.to_owned());
        self
    }

    fn write(&self, out: &mut String) {
        let Destination { name, sync_interval_ms, place, keys } = self;
        let _ = writeln!(out, "  - name: {name}\n    sync-interval: {sync_interval_ms}ms");
        for key in keys {
            let _ = writeln!(out, "    {key}");
        }
        match place {
            Place::File(path) => {
                let _ = writeln!(out, "    type: file\n    path: {}", path.display());
            }
            Place::Keys => {}
            Place::S3 { server, bucket, prefix } => {
                let _ = writeln!(out, "    type: s3\n    bucket: {bucket}\n    path: {prefix}");
                let _ = writeln!(out, "    region: {}\n    endpoint: {}", server.region, server.endpoint);
                let _ = writeln!(out, "    access-key-id: {}", server.access_key);
                let _ = writeln!(out, "    secret-access-key: {}", server.secret_key);
                let _ = writeln!(out, "    force-path-style: true");
            }
        }
    }
}

/// `hub.yml`.
pub fn hub_yml(
    listen: &str,
    data_dir: &Path,
    tls: &Files,
    destinations: &[Destination],
    extra: &str,
) -> String {
    let mut out = format!("listen: {listen}\ndata-dir: {}\n", data_dir.display());
    write_tls(&mut out, tls);
    out.push_str(extra);
    out.push_str("destinations:\n");
    for destination in destinations {
        destination.write(&mut out);
    }
    out
}

/// `agent.yml`, with `databases` as (name, path).
pub fn agent_yml(
    hub: &str,
    state_dir: &Path,
    tls: &Files,
    databases: &[(String, PathBuf)],
    extra: &str,
) -> String {
    let mut out = format!("hub: {hub}\nstate-dir: {}\n", state_dir.display());
    write_tls(&mut out, tls);
    out.push_str(extra);
    out.push_str("databases:\n");
    for (name, path) in databases {
        let _ = writeln!(out, "  - path: {}\n    name: {name}", path.display());
    }
    out
}

fn write_tls(out: &mut String, tls: &Files) {
    let Files { ca, cert, key } = tls;
    let _ =
        writeln!(out, "tls:\n  ca: {}\n  cert: {}\n  key: {}", ca.display(), cert.display(), key.display());
}

/// A port nobody listens on, below the kernel's range for outgoing connections, so that none of those takes it while
/// its owner is down.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let seed = std::process::id().wrapping_mul(2_654_435_761).wrapping_add(step.wrapping_mul(7919));
        let port = 20_000 + (seed % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port found");
}
