//! A bucket or folder written by Litestream 0.5 ▸ the history of a database of this hub.
//!
//! List ▸ plan the newest state (a hole is an error that names it) ▸ rebuild that state once on the hub's disk and take
//! its checksum ▸ put every file, byte for byte, to every destination that serves the database, in the order of its
//! transactions, and at the end a snapshot of the newest state that carries lineage and checksum ▸ register the database
//! at that position. An agent that follows the database then asks for page checksums and goes on as the next transaction.
//!
//! # Invariants
//! - A database the hub knows, or files of it at a destination that are not among those to be imported, are refused.
//! - Nothing is registered before every destination holds everything: an import that broke off may be repeated, and
//!   gives the same files ([`lineage_of`] is no draw).
//! - Every file is verified on its way. Memory does not depend on the history; disk is the newest state twice.
//!
//! Non-goals: generations of Litestream 0.3.

mod snapshot;

use crate::buffer::WalBuffer;
use crate::copies::Board;
use crc_fast::CrcAlgorithm;
use futures_util::StreamExt;
use snapshot::Newest;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;
use walhub_common::ltx::{LtxError, Verifier};
use walhub_common::{DatabaseKey, DestinationName, Level, Pos, TxidRange};
use walhub_store::destinations::url;
use walhub_store::destinations::{Body, DestinationError, DynDestination, Fault, FileKey, Listed, PutMeta};
use walhub_store::restore::{
    self, DestinationSource, DynSource, LitestreamSource, RestoreError, Source, Target,
};

/// Where our snapshot waits while it takes the place of Litestream's own of the same transactions.
const ASIDE: Level = match Level::new(8) {
    Some(level) => level,
    None => unreachable!(),
};
/// A file on its way.
const COPY: &str = "import-file.ltx";

/// The place that is read, with the credentials of the hub's environment.
async fn open(url: &str) -> Result<DynDestination, ImportError> {
    let name = DestinationName::new("import").expect("BUG: a good name");
    Ok(url::parse(url).map_err(ImportError::Url)?.build(name).await?)
}

/// Why a history was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The address cannot be used.
    #[error("{0}")]
    Url(String),
    /// Another history is in the way.
    #[error("{0}")]
    Taken(String),
    /// No chain of files leads to the newest state.
    #[error(transparent)]
    Plan(#[from] RestoreError),
    /// A place failed.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// A file is damaged.
    #[error("{0}")]
    Damaged(String),
    /// The hub's own disk.
    #[error("the hub's disk: {0}")]
    Disk(#[from] std::io::Error),
    /// The buffer.
    #[error("the buffer: {0}")]
    Buffer(#[from] crate::buffer::BufferError),
    /// Whoever asked has gone.
    #[error("cancelled")]
    Cancelled,
}

/// How far an import is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Files copied.
    pub files: u64,
    /// Files there are.
    pub total_files: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Takes histories in, one at a time.
pub struct Importer {
    buffer: Arc<dyn WalBuffer>,
    board: Arc<Board>,
    tmp: PathBuf,
    turn: tokio::sync::Mutex<()>,
}

impl Importer {
    /// Files in the making lie in `tmp`, which exists and is emptied at every start.
    pub fn new(buffer: Arc<dyn WalBuffer>, board: Arc<Board>, tmp: PathBuf) -> Self {
        Self { buffer, board, tmp, turn: tokio::sync::Mutex::default() }
    }

    /// See the module doc. Cancel safe: what was copied stays and is found again.
    pub async fn import(
        &self,
        url: &str,
        database: &DatabaseKey,
        mut tell: impl FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<Pos, ImportError> {
        let _turn = self.turn.lock().await;
        self.refuse_known(database)?;
        let source: DynSource = Arc::new(LitestreamSource::new(open(url).await?));
        let files = source.list(database, cancel).await?;
        let destinations: Vec<DynDestination> = {
            let roster = self.board.roster();
            roster.terms(database).places.iter().map(|place| place.destination.clone()).collect()
        };
        let sources = [source.clone()];
        let prepared = restore::prepare(&sources, database, None, Target::Latest, cancel).await?;
        let newest = prepared.plan.reached;
        let mut progress = Progress { total_files: files.len() as u64 + 1, ..Progress::default() };
        tell(progress);
        let _scratch = Scratch(self.tmp.clone());
        let pieces = restore::fetch(&sources, database, &prepared.plan, cancel);
        let newest = Newest::rebuild(&self.tmp, newest, pieces, database).await?;
        let whole = TxidRange::new(walhub_common::Txid::FIRST, newest.position.txid);
        let whole = whole.ok_or_else(|| ImportError::Damaged("the history is empty".to_owned()))?;
        let levels = [Level::SNAPSHOT, ASIDE];
        let ours = |file: &Listed| levels.contains(&file.level) && file.range == whole;
        let snapshot_bytes = std::fs::metadata(&newest.snapshot)?.len();
        for destination in &destinations {
            let mine = |file: &Listed| ours(file) && file.size == snapshot_bytes;
            self.refuse_others(destination, database, &files, mine, cancel).await?;
        }
        // In the order of their transactions, so that no destination ever shows a hole.
        let mut files = files;
        files.retain(|file| !ours(file));
        files.sort_by_key(|file| (file.range.max(), file.range.min(), std::cmp::Reverse(file.level)));
        for file in &files {
            let bytes = copy(&source, &destinations, database, file, &self.tmp, cancel).await?;
            progress = Progress { files: progress.files + 1, bytes: progress.bytes + bytes, ..progress };
            tell(progress);
        }
        let key = FileKey { database: database.clone(), level: Level::SNAPSHOT, range: whole };
        let meta = PutMeta { time_ms: newest.time_ms, post: Some(newest.position.checksum) };
        for destination in &destinations {
            put_snapshot(destination, &key, &newest.snapshot, meta, cancel).await?;
        }
        self.refuse_known(database)?;
        let registered = self.buffer.register(database, Some(newest.lineage), "").await?;
        self.buffer.adopt(registered.id, newest.position, newest.time_ms).await?;
        tell(Progress { files: progress.total_files, ..progress });
        tracing::info!(%database, %url, position = %newest.position, "a history was imported");
        Ok(newest.position)
    }

    fn refuse_known(&self, database: &DatabaseKey) -> Result<(), ImportError> {
        match self.buffer.find(database) {
            None => Ok(()),
            Some(held) => Err(ImportError::Taken(format!(
                "the hub has a history of {database} already ({:016x}, {} transactions); import under another name",
                held.lineage,
                held.position.map_or(0, |position| position.txid.get())
            ))),
        }
    }

    /// Files of the database that are there must be those of an import that broke off.
    async fn refuse_others(
        &self,
        destination: &DynDestination,
        database: &DatabaseKey,
        files: &[Listed],
        ours: impl Fn(&Listed) -> bool,
        cancel: &CancellationToken,
    ) -> Result<(), ImportError> {
        for there in DestinationSource(destination.clone()).list(database, cancel).await? {
            let known = ours(&there)
                || files.iter().any(|file| {
                    (file.level, file.range, file.size) == (there.level, there.range, there.size)
                });
            if !known {
                return Err(ImportError::Taken(format!(
                    "destination {} holds files of another history of {database}, such as level {} {}; import under \
                     another name, or move them away",
                    destination.name(),
                    there.level,
                    there.range
                )));
            }
        }
        Ok(())
    }
}

/// Removes what an import leaves in the folder of files in the making.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        for name in [COPY, snapshot::IMAGE, snapshot::SNAPSHOT] {
            let path = self.0.join(name);
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a temporary file");
            }
        }
    }
}

/// Puts our snapshot. When history is imported where it lies, Litestream's own of the same transactions, which says
/// nothing of lineage and checksum, may have its name: ours takes its place, and lies beside it before it goes.
async fn put_snapshot(
    destination: &DynDestination,
    key: &FileKey,
    snapshot: &Path,
    meta: PutMeta,
    cancel: &CancellationToken,
) -> Result<(), ImportError> {
    let body = || Body::File(snapshot.to_path_buf());
    match destination.put(key, body(), meta, cancel).await {
        Err(error) if matches!(error.fault, Fault::Conflict(_)) => {}
        put => return Ok(put.map(drop)?),
    }
    let aside = FileKey { level: ASIDE, ..key.clone() };
    destination.put(&aside, body(), meta, cancel).await?;
    destination.delete(std::slice::from_ref(key), cancel).await?;
    destination.put(key, body(), meta, cancel).await?;
    destination.delete(&[aside], cancel).await?;
    Ok(())
}

/// Copies one file to all `destinations`; its bytes.
async fn copy(
    source: &DynSource,
    destinations: &[DynDestination],
    database: &DatabaseKey,
    file: &Listed,
    folder: &Path,
    cancel: &CancellationToken,
) -> Result<u64, ImportError> {
    let key = FileKey { database: database.clone(), level: file.level, range: file.range };
    let damaged =
        |error: LtxError| ImportError::Damaged(format!("level {} {}: {error}", file.level, file.range));
    let path = folder.join(COPY);
    let mut out = File::create(&path).await?;
    let mut verifier = Verifier::new(u64::MAX);
    let mut pieces = source.open(&key, 0, cancel).await?;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        verifier.push(&piece).map_err(damaged)?;
        out.write_all(&piece).await?;
    }
    out.flush().await?;
    drop(out);
    let verified = verifier.finish().map_err(damaged)?;
    if verified.header.range != file.range {
        let text = format!("level {} {}: its header says {}", file.level, file.range, verified.header.range);
        return Err(ImportError::Damaged(text));
    }
    let post = verified.header.provenance.map(|provenance| provenance.post);
    let meta = PutMeta { time_ms: verified.header.timestamp_ms, post };
    for destination in destinations {
        destination.put(&key, Body::File(path.clone()), meta, cancel).await?;
    }
    Ok(verified.bytes)
}

/// The identity of an imported history: the same for the same database and state, so that an import can be repeated.
fn lineage_of(database: &DatabaseKey, position: Pos) -> u64 {
    let text = format!("import {database} {position}");
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, text.as_bytes()).max(1)
}
