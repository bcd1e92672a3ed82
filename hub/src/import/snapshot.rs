//! The newest state of a history on the hub's disk, its checksum, and a snapshot file of it.

use super::{ImportError, lineage_of};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};
use walhub_common::ltx::{Encoder, Header, Provenance};
use walhub_common::restore::{Applier, Report, feed};
use walhub_common::{DatabaseKey, Pgno, Pos, Txid, TxidRange};
use walhub_store::destinations::DestinationError;
use walhub_store::restore::Piece;

/// Stock Litestream takes an offset below this for a mistake.
const WAL_OFFSET: u64 = 32;

/// Names inside the folder.
pub(super) const IMAGE: &str = "import-image.db";
pub(super) const SNAPSHOT: &str = "import-snapshot.ltx";

/// See the module doc.
#[derive(Debug)]
pub(super) struct Newest {
    /// Transaction and checksum.
    pub(super) position: Pos,
    /// Time of that transaction, Unix ms.
    pub(super) time_ms: i64,
    /// Identity that the history gets.
    pub(super) lineage: u64,
    /// A file of level 9.
    pub(super) snapshot: PathBuf,
}

impl Newest {
    /// Applies the files of a plan that leads to `txid`, inside `folder`.
    pub(super) async fn rebuild(
        folder: &Path,
        txid: Txid,
        mut pieces: BoxStream<'static, Result<Piece, DestinationError>>,
        database: &DatabaseKey,
    ) -> Result<Newest, ImportError> {
        let (feeder, files) = feed::channel();
        let (folder, database) = (folder.to_path_buf(), database.clone());
        let applying = tokio::task::spawn_blocking(move || apply(&folder, files, txid, &database));
        let feeding = async {
            while let Some(piece) = pieces.next().await {
                let sent = match piece {
                    Ok(Piece::Start(file)) => {
                        feeder.file(format!("level {} {}", file.level, file.range)).await
                    }
                    Ok(Piece::Data(data)) => feeder.data(data).await,
                    Err(error) => {
                        let _ = feeder.fail(error.to_string()).await;
                        return Err(error);
                    }
                };
                if sent.is_err() {
                    // Whoever applies says why.
                    return Ok(());
                }
            }
            let _ = feeder.finish(None).await;
            Ok(())
        };
        let (fed, applied) = tokio::join!(feeding, applying);
        fed?;
        applied.map_err(std::io::Error::other)?
    }
}

fn apply(
    folder: &Path,
    files: feed::Feed,
    txid: Txid,
    database: &DatabaseKey,
) -> Result<Newest, ImportError> {
    let damaged = |error: &dyn std::fmt::Display| ImportError::Damaged(error.to_string());
    let image = folder.join(IMAGE);
    let applier = Applier::new(&image, true).map_err(|error| damaged(&error))?;
    let report = files.restore(applier).map_err(|error| damaged(&error))?;
    if report.range.max() != txid {
        return Err(damaged(&format!("the files lead to {}, not to {txid}", report.range.max())));
    }
    let position = report.position();
    let lineage = lineage_of(database, position);
    let snapshot = encode(folder, &report, lineage)?;
    Ok(Newest { position, time_ms: report.timestamp_ms, lineage, snapshot })
}

fn encode(folder: &Path, report: &Report, lineage: u64) -> Result<PathBuf, ImportError> {
    let fault = |error: &dyn std::fmt::Display| ImportError::Damaged(format!("its snapshot: {error}"));
    let range = TxidRange::new(Txid::FIRST, report.range.max()).ok_or_else(|| fault(&"no transactions"))?;
    let header = Header {
        page_size: report.page_size,
        commit: report.pages,
        range,
        timestamp_ms: report.timestamp_ms,
        wal_offset: WAL_OFFSET,
        wal_size: 0,
        wal_salts: [0, 0],
        node_id: lineage,
        provenance: Some(Provenance { pre: None, post: report.checksum }),
    };
    let path = folder.join(SNAPSHOT);
    let mut image = BufReader::with_capacity(1 << 20, File::open(&report.path)?);
    let mut encoder =
        Encoder::new(BufWriter::new(File::create(&path)?), header).map_err(|error| fault(&error))?;
    let (lock, mut page) = (report.page_size.lock_page(), vec![0; report.page_size.bytes()]);
    for number in 1..=report.pages {
        image.read_exact(&mut page)?;
        let Some(pgno) = Pgno::new(number).filter(|pgno| *pgno != lock) else { continue };
        encoder.page(pgno, &page).map_err(|error| fault(&error))?;
    }
    let (out, _) = encoder.finish().map_err(|error| fault(&error))?;
    out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    Ok(path)
}
