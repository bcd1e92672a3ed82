//! Litestream 0.3.13 in its own format: a whole snapshot and pieces of the log. It follows a database of the asked size through
//! the asked number of transactions, each of which becomes a piece, and restores that replica from its folder and from a
//! bucket that holds the same objects.

use crate::increments::{bucket, files};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::Connection;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use walhub_store::destinations::object::ObjectPath;
use walhub_store::destinations::{Body, PutMode};
use walhub_tests::eventually::{ensure, eventually};
use walhub_tests::process::{Process, run};
use walhub_tests::services::S3;

const PATIENCE: Duration = Duration::from_secs(600);

/// A replica of Litestream 0.3.13.
pub(crate) struct Generations {
    program: PathBuf,
    folder: PathBuf,
    bytes: u64,
    transactions: u64,
}

impl Generations {
    /// Makes one in `folder`; `None` (after a line on stderr) when there is no such program.
    pub(crate) fn make(folder: &Path, pages: u32, transactions: u64, changed: usize) -> Option<Generations> {
        let Some(program) = std::env::var_os("WALHUB_TEST_LITESTREAM_03") else {
            eprintln!("WALHUB_TEST_LITESTREAM_03 is not set: without litestream 0.3.13");
            return None;
        };
        fs::create_dir_all(folder).expect("folder");
        let (database, folder) = (folder.join("app.db"), folder.to_path_buf());
        let app = fill(&database, pages);
        let made = Generations { program: program.into(), folder, bytes: 0, transactions };
        let config = made.folder.join("replicate.yml");
        let text = format!(
            "dbs:\n  - path: {}\n    monitor-interval: 5ms\n    replicas:\n      - {{type: file, path: {}, \
             sync-interval: 5ms}}\n",
            database.display(),
            made.replica().display()
        );
        fs::write(&config, text).expect("configuration");
        let mut command = Command::new(&made.program);
        command.args(["replicate", "-config"]).arg(&config);
        let follower = Process::spawn("litestream 0.3.13", command, &made.folder.join("log"));
        eventually("its snapshot", PATIENCE, || {
            ensure(made.count(".snapshot.lz4") > 0 && made.count(".wal.lz4") > 0, || follower.log())
        });
        let mut random = StdRng::seed_from_u64(1);
        for version in 1..=transactions {
            let before = made.count(".wal.lz4");
            app.execute_batch("BEGIN IMMEDIATE").expect("begin");
            let mut update = app
                .prepare("UPDATE t SET version = ?1, x = randomblob(2000) || zeroblob(1900) WHERE id = ?2");
            let update = update.as_mut().expect("statement");
            for _ in 0..changed {
                update.execute((version as i64, random.random_range(1..pages))).expect("update");
            }
            app.execute_batch("COMMIT").expect("commit");
            eventually("a piece of the log", PATIENCE, || {
                ensure(made.count(".wal.lz4") > before, || follower.log())
            });
        }
        drop(follower);
        drop(app);
        let bytes = fs::metadata(&database).expect("size").len();
        for end in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(made.folder.join(format!("app.db{end}")));
        }
        Some(Generations { bytes, ..made })
    }

    /// Size of the database.
    pub(crate) fn megabytes(&self) -> f64 {
        self.bytes as f64 / 1e6
    }

    fn replica(&self) -> PathBuf {
        self.folder.join("replica")
    }

    fn count(&self, end: &str) -> usize {
        let replica = self.replica();
        let found = if replica.exists() { files(&replica) } else { Vec::new() };
        found.iter().filter(|path| path.to_string_lossy().ends_with(end)).count()
    }

    /// Seconds of a restore from the folder.
    pub(crate) fn restore_file(&self) -> f64 {
        self.restore(&format!("{{type: file, path: {}}}", self.replica().display()))
    }

    /// Seconds of a restore from a bucket.
    pub(crate) fn restore_s3(&self, server: &S3) -> f64 {
        let prefix = format!("bench-{:016x}", rand::random::<u64>());
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            let bucket = bucket(server, &prefix).await;
            let cancel = CancellationToken::new();
            for path in files(&self.replica()) {
                let name = path.strip_prefix(self.replica()).expect("below").to_string_lossy().into_owned();
                let name = ObjectPath::new(name).expect("a path");
                bucket.put_object(&name, Body::File(path), PutMode::Create, &cancel).await.expect("put");
            }
        });
        let S3 { endpoint, access_key, secret_key, region } = server;
        self.restore(&format!(
            "{{type: s3, bucket: walhub, path: {prefix}, region: {region}, endpoint: '{endpoint}', force-path-style: \
             true, access-key-id: '{access_key}', secret-access-key: '{secret_key}'}}"
        ))
    }

    fn restore(&self, replica: &str) -> f64 {
        let (config, out) = (self.folder.join("restore.yml"), self.folder.join("out.db"));
        let source = self.folder.join("app.db");
        let text = format!("dbs:\n  - path: {}\n    replicas:\n      - {replica}\n", source.display());
        fs::write(&config, text).expect("configuration");
        let mut command = Command::new(&self.program);
        command.args(["restore", "-config"]).arg(&config).arg("-o").arg(&out).arg(&source);
        let began = Instant::now();
        run(command).success();
        let seconds = began.elapsed().as_secs_f64();
        let restored = Connection::open(&out).expect("open");
        let newest = restored.query_row("SELECT max(version) FROM t", [], |row| row.get::<_, i64>(0));
        assert_eq!(newest.expect("the newest version") as u64, self.transactions);
        drop(restored);
        fs::remove_file(&out).expect("remove the restored file");
        seconds
    }
}

/// A database of about so many pages, each a row, half of it noise.
fn fill(path: &Path, pages: u32) -> Connection {
    let app = Connection::open(path).expect("open");
    app.pragma_update(None, "journal_mode", "wal").expect("WAL");
    app.pragma_update(None, "synchronous", "off").expect("synchronous");
    app.busy_timeout(PATIENCE).expect("busy timeout");
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, version INTEGER, x BLOB)").expect("schema");
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO t(version, x) SELECT 0, randomblob(2000) || zeroblob(1900) FROM n";
    app.execute(rows, [pages]).expect("fill");
    app.pragma_update(None, "wal_checkpoint", "truncate").expect("checkpoint");
    app
}
