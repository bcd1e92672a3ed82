//! A restore point of one destination as a file in scratch space: read as every restore reads, each page once, and held against the
//! checksum that its source took.

use crate::durable::Temp;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseKey;
use walhub_common::restore::frames::Frames;
use walhub_common::restore::{PageSink, Point, Report, RestoreError, Unfilled, fill};
use walhub_store::destinations::{DestinationError, Fault, Listed};
use walhub_store::restore::{self, Ask, DynSource, Listing, PagesError, Plan, Prepared, times};

/// Free disk space that a restore leaves.
const RESERVE_BYTES: u64 = 256 << 20;
/// Bytes of a range, about: a drill is in no hurry, and the hub has other work for its memory.
const SPAN_BYTES: u64 = 1 << 20;
const FILE: &str = "drill.db";

/// Where it is put, and how much may lie there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scratch<'a> {
    pub(super) folder: &'a Path,
    pub(super) max_bytes: u64,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing was found out about the copy.
    Undone(String),
    /// Its database is larger than the scratch space.
    TooLarge(String),
    /// It is not what it should be; perhaps a file of the plan is to blame.
    Wrong(String),
}

impl From<DestinationError> for Failed {
    fn from(error: DestinationError) -> Failed {
        match error.fault {
            Fault::NotFound | Fault::Corrupt(_) => Failed::Wrong(error.to_string()),
            _ => Failed::Undone(error.to_string()),
        }
    }
}

impl From<PagesError> for Failed {
    fn from(error: PagesError) -> Failed {
        match error {
            PagesError::Source { error, .. } => error.into(),
            PagesError::MissingPage(_) | PagesError::Nothing => Failed::Wrong(error.to_string()),
            PagesError::Internal => Failed::Undone(error.to_string()),
        }
    }
}

impl From<RestoreError> for Failed {
    fn from(error: RestoreError) -> Failed {
        match error {
            RestoreError::Io { .. } | RestoreError::Busy(_) => Failed::Undone(error.to_string()),
            error => Failed::Wrong(error.to_string()),
        }
    }
}

/// Restores by `plan` from `source` alone: no other file stands in for one that is damaged. After `cancel` nothing is left.
pub(super) async fn restore(
    source: &DynSource,
    database: &DatabaseKey,
    plan: &Plan,
    scratch: Scratch<'_>,
    cancel: &CancellationToken,
) -> Result<(Report, Temp), Failed> {
    let sources = std::slice::from_ref(source);
    let last = plan.files.last().ok_or(PagesError::Nothing)?;
    let header = times::read_header(sources, database, last, cancel).await?;
    let point = Point {
        txid: plan.reached,
        checksum: header.provenance.map(|provenance| provenance.post),
        page_size: header.page_size,
        commit: header.commit,
        timestamp_ms: header.timestamp_ms,
    };
    room(scratch, point.bytes())?;
    let prepared = Prepared {
        plan: plan.clone(),
        header: Some(header),
        unanswered: Vec::new(),
        after: None,
        listings: Arc::new([listing(source, plan)]),
    };
    let temp = Temp::new(scratch.folder.join(FILE));
    let path = temp.path().to_owned();
    // What another drill read of another destination proves nothing of this one.
    let sink = blocking(move || PageSink::create_anew(&path, true, point)).await??;
    let ask = Ask { span_bytes: SPAN_BYTES, ..Ask::new(sink.present()) };
    let mut pages = Pages(restore::pages(sources, database, &prepared, ask, cancel));
    let over = async {
        cancel.cancelled().await;
        Failed::Undone("cancelled".to_owned())
    };
    let sink = match fill(sink, &mut pages, |_| (), over).await {
        Ok(sink) => sink,
        Err(Unfilled::Broken { error, .. }) => return Err(error),
        Err(Unfilled::Sink(error)) => return Err(error.into()),
    };
    let files = plan.files.len() as u64;
    let report = blocking(move || sink.finish(files, |_| Ok(()))).await??;
    Ok((report, temp))
}

struct Pages(BoxStream<'static, Result<Frames, PagesError>>);

impl fill::Pages for Pages {
    type Error = PagesError;

    async fn next(&mut self) -> Result<Option<Frames>, PagesError> {
        self.0.next().await.transpose()
    }
}

/// What the plan takes, and nothing else.
fn listing(source: &DynSource, plan: &Plan) -> Listing {
    let files = plan.files.iter().map(|file| Listed {
        level: file.level,
        range: file.range,
        size: file.size,
        time_ms: file.time_ms,
    });
    Listing { source: source.name().clone(), files: files.collect() }
}

fn room(scratch: Scratch<'_>, bytes: u64) -> Result<(), Failed> {
    let Scratch { folder, max_bytes } = scratch;
    if bytes > max_bytes {
        return Err(Failed::TooLarge(format!("the database has {bytes} bytes; scratch-max is {max_bytes}")));
    }
    let stat = rustix::fs::statvfs(folder).map_err(|error| Failed::Undone(error.to_string()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < bytes.saturating_add(RESERVE_BYTES) {
        let folder = folder.display();
        return Err(Failed::TooLarge(format!("{bytes} bytes are needed in {folder}, {free} are free")));
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failed> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|error| Failed::Undone(format!("a task of the hub ended: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_common::ltx::{Encoder, Header, Provenance, name};
    use walhub_common::{Checksum, Level, PageSize, Pgno, TxidRange};
    use walhub_store::destinations::config::FileConfig;
    use walhub_store::destinations::file::FileDestination;
    use walhub_store::restore::{DestinationSource, Inventory, Reach};

    const SIZE: PageSize = PageSize::new(65_536).unwrap();
    /// 69 MiB.
    const PAGES: u32 = 1_100;

    /// A file of one transaction; its pages are full of this byte.
    fn ltx(txid: u64, pages: std::ops::RangeInclusive<u32>, fill: u8) -> Vec<u8> {
        let sums =
            (1..=PAGES).map_while(Pgno::new).map(|pgno| Checksum::of_page(pgno, &vec![7; SIZE.bytes()]));
        let header = Header {
            page_size: SIZE,
            commit: PAGES,
            range: TxidRange::from_raw(txid, txid).unwrap(),
            timestamp_ms: 1,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: [0, 0],
            node_id: 7,
            provenance: Some(Provenance { pre: None, post: sums.fold(Checksum::EMPTY, Checksum::toggle) }),
        };
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for pgno in pages.map_while(Pgno::new) {
            encoder.page(pgno, &vec![fill; SIZE.bytes()]).unwrap();
        }
        encoder.finish().unwrap().0
    }

    /// Enough comes to be worth keeping, if it were no drill: then the oldest file turns out to be damaged.
    #[tokio::test]
    async fn a_drill_that_breaks_off_leaves_nothing_for_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let config = FileConfig { path: dir.path().join("far") };
        let inner = FileDestination::new("far".parse().unwrap(), &config);
        let source: DynSource = Arc::new(DestinationSource(Arc::new(inner)));
        let key: DatabaseKey = "node/app".parse().unwrap();
        let folder = config.path.join(key.to_string()).join(name::fs_dir(Level::RAW));
        std::fs::create_dir_all(&folder).unwrap();
        let mut first = ltx(1, 1..=PAGES, 6);
        let middle = first.len() / 2;
        first[middle] ^= 1;
        for (txid, bytes) in [(1, first), (2, ltx(2, 1..=PAGES - 1, 7))] {
            let file = name::file_name(TxidRange::from_raw(txid, txid).unwrap());
            std::fs::write(folder.join(file), bytes).unwrap();
        }
        let (sources, cancel) = ([source.clone()], CancellationToken::new());
        let Inventory { listings, .. } = Inventory::list(&sources, &key, &cancel).await;
        let plan = restore::plan::latest(&Reach::new(&listings, None)).unwrap();
        let scratch = dir.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        let place = Scratch { folder: &scratch, max_bytes: 1 << 30 };
        let failed = super::restore(&source, &key, &plan, place, &cancel).await.unwrap_err();
        assert!(matches!(&failed, Failed::Wrong(reason) if reason.contains("corrupt")), "{failed:?}");
        let left: Vec<_> = std::fs::read_dir(&scratch).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
