//! Real files in real folders, read through a destination that breaks.

use super::*;
use crate::destinations::config::FileConfig;
use crate::destinations::faulty::{Faults, Faulty};
use crate::destinations::file::FileDestination;
use crate::destinations::{Body, DynDestination, PutMeta};
use crate::restore::{DestinationSource, RestoreError, Target, prepare};
use futures_util::future::BoxFuture;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use walhub_common::ltx::{Encoder, Header, name};
use walhub_common::{DestinationName, Level, PageSize, Pgno, Txid, TxidRange};

const DATABASE: &str = "node/app.db";
static DATABASE_KEY: LazyLock<DatabaseKey> = LazyLock::new(|| DATABASE.parse().unwrap());

fn database() -> DatabaseKey {
    DATABASE_KEY.clone()
}

fn ltx(min: u64, max: u64, time_ms: i64, pages: u32) -> Bytes {
    let header = Header {
        page_size: PageSize::new(4096).unwrap(),
        commit: pages,
        range: TxidRange::from_raw(min, max).unwrap(),
        timestamp_ms: time_ms,
        wal_offset: 32,
        wal_size: 0,
        wal_salts: [0; 2],
        node_id: 0,
        provenance: None,
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for pgno in 1..=pages {
        // Noise, so that the file is about as large as its pages.
        let page: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
        encoder.page(Pgno::new(pgno).unwrap(), &page).unwrap();
    }
    encoder.finish().unwrap().0.into()
}

struct Place {
    folder: tempfile::TempDir,
    files: Vec<Bytes>,
}

impl Place {
    /// A snapshot 1..=4 of 3 MB, then single transactions 5..=40, one each second.
    async fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let place = plain("disk", folder.path());
        let mut files = Vec::new();
        for (min, max) in std::iter::once((1, 4)).chain((5..=40).map(|n| (n, n))) {
            let bytes = ltx(min, max, max as i64 * 1000, if min == 1 { 800 } else { 2 });
            let key = FileKey {
                database: database(),
                level: Level::RAW,
                range: TxidRange::from_raw(min, max).unwrap(),
            };
            // As after a copy without times: only the headers tell.
            let meta = PutMeta { time_ms: 9_999_999, post: None };
            place.put(&key, Body::Bytes(bytes.clone()), meta, &CancellationToken::new()).await.unwrap();
            files.push(bytes);
        }
        Place { folder, files }
    }

    fn faulty(&self, faults: Faults, seed: u64) -> DynSource {
        Arc::new(DestinationSource(Arc::new(Faulty::new(plain("disk", self.folder.path()), faults, seed))))
    }

    fn source(&self) -> DynSource {
        Arc::new(DestinationSource(plain("disk", self.folder.path())))
    }
}

fn plain(name: &str, path: &Path) -> DynDestination {
    let name = DestinationName::new(name).unwrap();
    Arc::new(FileDestination::new(name, &FileConfig { path: path.to_owned() }))
}

async fn plan(sources: &[DynSource], target: Target) -> Result<Plan, RestoreError> {
    let cancel = CancellationToken::new();
    let preparing: BoxFuture<'_, _> = Box::pin(prepare(sources, &DATABASE_KEY, None, target, &cancel));
    let prepared = preparing.await?;
    let header = prepared.header.unwrap();
    assert_eq!(header.range.max(), prepared.plan.reached);
    assert_eq!(header.timestamp_ms, header.range.max().get() as i64 * 1000);
    Ok(prepared.plan)
}

/// The files that come, whole; a started file without bytes counts as an empty one.
async fn collect(sources: &[DynSource], plan: &Plan) -> Result<Vec<Bytes>, DestinationError> {
    let mut files: Vec<BytesMut> = Vec::new();
    let mut pieces = fetch(sources, &database(), plan, &CancellationToken::new());
    while let Some(piece) = pieces.try_next().await? {
        match piece {
            Piece::Start(file) => {
                assert_eq!(file, plan.files[files.len()]);
                files.push(BytesMut::new());
            }
            Piece::Data(data) => {
                assert!(!data.is_empty());
                files.last_mut().unwrap().extend_from_slice(&data);
            }
        }
    }
    Ok(files.into_iter().map(BytesMut::freeze).collect())
}

#[tokio::test]
async fn all_bytes_come_in_order_whatever_breaks() {
    let place = Place::new().await;
    for seed in 0..2 {
        let faults = Faults { fail: 0.1, break_read: 0.3, ..Faults::default() };
        // The plan is made through a quiet one: its own failures are not the point here.
        let plan = plan(&[place.source()], Target::Latest).await.unwrap();
        let files = collect(&[place.faulty(faults, seed)], &plan).await.unwrap();
        assert!(files == place.files, "seed {seed}");
    }
}

#[tokio::test]
async fn a_source_that_stays_away_ends_the_restore() {
    let place = Place::new().await;
    let plan = plan(&[place.source()], Target::Latest).await.unwrap();
    let faults = Faults { fail: 1.0, ..Faults::default() };
    let error = collect(&[place.faulty(faults, 1)], &plan).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn times_come_from_the_headers() {
    let place = Place::new().await;
    let sources = [place.source()];
    for (asked_ms, reached) in
        [(4_000, 4), (4_999, 4), (5_000, 5), (39_999, 39), (40_000, 40), (i64::MAX, 40)]
    {
        let plan = plan(&sources, Target::TimestampMs(asked_ms)).await.unwrap();
        assert_eq!(plan.reached.get(), reached, "{asked_ms}");
    }
    let error = plan(&sources, Target::TimestampMs(3_999)).await.unwrap_err();
    assert!(
        error.to_string().contains("the oldest restore point is transaction 0000000000000004"),
        "{error}"
    );
}

#[tokio::test]
async fn a_source_that_is_away_is_replaced_and_named() {
    let place = Place::new().await;
    let away: DynSource =
        Arc::new(DestinationSource(plain("tape", Path::new("/no-such-folder-of-a-walhub-test"))));
    let sources = [away.clone(), place.source()];
    let made = plan(&sources, Target::Latest).await.unwrap();
    assert!(collect(&sources, &made).await.unwrap() == place.files);
    let error = plan(&[away], Target::Latest).await.unwrap_err().to_string();
    assert!(error.contains("no source holds a file of this database"), "{error}");
    assert!(error.contains("not asked: destination tape"), "{error}");
}

#[tokio::test]
async fn files_that_are_not_what_their_names_say_are_refused() {
    let place = Place::new().await;
    let sources = [place.source()];
    let made = plan(&sources, Target::Latest).await.unwrap();
    let path = |n: u64| {
        let range = TxidRange::from_raw(n, n).unwrap();
        place.folder.path().join(DATABASE).join(name::fs_dir(Level::RAW)).join(name::file_name(range))
    };
    for (content, word) in [
        (ltx(8, 8, 0, 2), "its header says"),
        (place.files[3].slice(..place.files[3].len() - 1), "it ends at byte"),
        (Bytes::from([&place.files[3][..], b"x"].concat()), "it is longer"),
        (Bytes::from_static(b"LTX1"), "corrupt"),
        (Bytes::new(), "it ends at byte 0"),
    ] {
        std::fs::write(path(7), &content).unwrap();
        let error = collect(&sources, &made).await.unwrap_err();
        assert!(matches!(error.fault, Fault::Corrupt(_)), "{error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    std::fs::remove_file(path(7)).unwrap();
    let error = collect(&sources, &made).await.unwrap_err();
    assert!(matches!(error.fault, Fault::NotFound), "{error}");
    // And planned anew, it is a hole.
    let error = plan(&sources, Target::Latest).await.unwrap_err();
    assert!(error.to_string().contains("the history has a hole"), "{error}");
    assert_eq!(plan(&sources, Target::Txid(Txid::new(6).unwrap())).await.unwrap().reached.get(), 6);
}

#[tokio::test]
async fn cancelling_ends_the_stream() {
    let place = Place::new().await;
    let sources = [place.source()];
    let made = plan(&sources, Target::Latest).await.unwrap();
    let cancel = CancellationToken::new();
    let mut pieces = fetch(&sources, &database(), &made, &cancel);
    assert!(matches!(pieces.next().await, Some(Ok(Piece::Start(_)))));
    cancel.cancel();
    let mut last = None;
    while let Some(piece) = pieces.next().await {
        last = Some(piece);
    }
    assert_eq!(last.unwrap().unwrap_err().class(), Class::Cancelled);
}
