//! Hubs are lost with mirrors that are good, damaged, old, of others, and of the future.

use super::*;
use crate::buffer::WalBuffer;
use crate::buffer::disk::{DiskBuffer, Options};
use crate::fleet::{Epochs, LabelBook};
use crate::mirror::state::{HubState, sample};
use crate::mirror::{Ledger, format, shelf};
use crate::retain::Holds;
use crate::testutil::Image;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::PathBuf;
use walhub_common::ltx::{Decoder, Stamp, merge};
use walhub_common::{Level, Pos};
use walhub_store::destinations::{Body, FileKey, PutMeta, PutMode};

const LINEAGE: u64 = 0xfeed;

struct Scene {
    dir: tempfile::TempDir,
    config: Config,
    places: Vec<DynDestination>,
    /// After each transaction of `node/a.db`.
    positions: Vec<Pos>,
}

impl Scene {
    /// Destinations `near`, which holds four transactions of `node/a.db`, and `far`, which holds three.
    async fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "listen: 127.0.0.1:0\ndata-dir: {0}/data\ntls: {{ca: a, cert: b, key: c}}\ndestinations:\n  \
             - {{name: near, type: file, path: {0}/near}}\n  - {{name: far, type: file, path: {0}/far}}\n",
            dir.path().display()
        );
        let config = Config::from_text(&text).unwrap();
        let mut places = Vec::new();
        for entry in &config.destinations {
            places.push(reload::make(entry, &Meters::default(), None).await.unwrap());
            places.last().unwrap().probe(&CancellationToken::new()).await.unwrap();
        }
        let mut image = Image::new(6);
        let mut segments = vec![image.first()];
        segments.extend((2..=5).map(|page| image.commit(&[page])));
        for (place, count) in places.iter().zip([4, 3]) {
            for segment in &segments[..count] {
                let key = FileKey {
                    database: "node/a.db".parse().unwrap(),
                    level: Level::RAW,
                    range: segment.range,
                };
                let stamp = Stamp { timestamp_ms: 1_800_000_000_000, node_id: LINEAGE, whole: false };
                let mut file = Vec::new();
                merge(vec![Decoder::new(&segment.ltx[..]).unwrap()], stamp, &mut file).unwrap();
                let meta = PutMeta { time_ms: 5, post: Some(segment.post) };
                place.put(&key, Body::Bytes(file.into()), meta, &CancellationToken::new()).await.unwrap();
            }
        }
        let position =
            |segment: &crate::testutil::Segment| Pos { txid: segment.range.max(), checksum: segment.post };
        let positions = segments.iter().map(position).collect();
        Scene { dir, config, places, positions }
    }

    /// What a hub with `node/a.db` at its fifth transaction and an empty `node/b.db` mirrors.
    fn state(&self, seq: u64) -> HubState {
        let mut state =
            HubState { seq, written_ms: 1_795_354_117_000 + seq as i64, predecessor: None, ..sample() };
        state.databases[0].lineage = LINEAGE;
        state.databases[0].position = Some(self.positions[4]);
        state
    }

    async fn put(&self, place: usize, state: &HubState) {
        self.put_bytes(place, &state.id, state.seq, format::seal(&state.to_wire())).await;
    }

    async fn put_bytes(&self, place: usize, hub: &HubId, seq: u64, bytes: Bytes) {
        let (path, cancel) = (shelf::path(hub, seq), CancellationToken::new());
        self.places[place].put_object(&path, Body::Bytes(bytes), PutMode::Create, &cancel).await.unwrap();
    }

    async fn rebuild(&self, from: &str, hub: Option<&HubId>, dry_run: bool) -> Result<Report, String> {
        let order = Order { from: from.to_owned(), hub: hub.cloned(), dry_run };
        let rebuilt = rebuild(&self.config, &order, &CancellationToken::new()).await;
        rebuilt.map_err(|error| error.to_string())
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

#[tokio::test]
async fn a_hub_comes_back_with_all_that_its_files_do_not_tell() {
    let scene = Scene::new().await;
    let state = scene.state(3);
    scene.put(0, &state).await;
    let dry = scene.rebuild("near", None, true).await.unwrap();
    assert!(dry.hub.is_none() && !scene.data().exists(), "a dry run writes nothing");
    assert_eq!(dry.databases[0].verdict, Verdict::Behind { transactions: 1 });
    let report =
        scene.rebuild(&format!("file://{}/near", scene.dir.path().display()), None, false).await.unwrap();
    assert_eq!(report.databases, dry.databases);
    let text = report.lines("hub.yml").join("\n");
    assert!(text.contains("held 1 transactions more") && text.contains("case 7"), "{text}");
    assert!(text.contains("walhub-hub run --config hub.yml"), "{text}");

    let buffer = DiskBuffer::open(Options::new(scene.data(), 1 << 28)).unwrap();
    let databases = buffer.databases();
    let found: Vec<_> = databases.iter().map(|d| (d.key.to_string(), d.lineage, d.position)).collect();
    // What is proved by files, not what the lost hub had.
    let expected =
        [("node/a.db".to_owned(), LINEAGE, Some(scene.positions[3])), ("node/b.db".to_owned(), 0xabc, None)];
    assert_eq!(found, expected);
    assert_eq!((databases[0].time_ms, databases[0].path.as_str()), (1_800_000_000_000, "/data/a.db"));
    buffer.close().await.unwrap();
    assert_eq!(Epochs::open(&scene.data()).unwrap().known(), state.agents);
    assert_eq!(LabelBook::open(&scene.data()).unwrap().all(), state.labels);
    assert_eq!(Holds::open(&scene.data()).unwrap().list(), state.holds);
    let ledger = Ledger::open(&scene.data()).unwrap();
    assert_eq!((ledger.predecessor(), Some(ledger.id().clone())), (Some(state.id), report.hub));

    let refused = scene.rebuild("near", None, false).await.unwrap_err();
    assert!(refused.contains("is not empty") && refused.contains("agents.json"), "{refused}");
    // A repetition of one that broke off begins anew.
    std::fs::write(scene.data().join("rebuild.unfinished"), b"").unwrap();
    refuse_unfinished(&scene.data()).unwrap_err();
    scene.rebuild("near", None, false).await.unwrap();
    refuse_unfinished(&scene.data()).unwrap();
}

#[tokio::test]
async fn the_newest_good_mirror_is_taken_whatever_happened_to_the_others() {
    let scene = Scene::new().await;
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let state = HubState { id: HubId::draw(), ..scene.state(0) };
        let mut newest_good = None;
        for seq in 1..=5 {
            let state = HubState { seq, ..state.clone() };
            let mut bytes = format::seal(&state.to_wire()).to_vec();
            match random.random_range(0..4) {
                0 => newest_good = Some(seq),
                1 => bytes.truncate(random.random_range(0..bytes.len())),
                2 => {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] ^= 1 << random.random_range(0..8);
                }
                // Another one's bytes under this name.
                _ => bytes = format::seal(&HubState { seq: seq + 1, ..state.clone() }.to_wire()).to_vec(),
            }
            scene.put_bytes(0, &state.id, seq, bytes.into()).await;
        }
        let found = scene.rebuild("near", Some(&state.id), true).await;
        match (newest_good, found) {
            (Some(seq), Ok(report)) => {
                assert_eq!(
                    (report.state.seq, report.passed_over.len() as u64),
                    (seq, 5 - seq),
                    "seed {seed}"
                );
                let warned =
                    report.lines("x").iter().filter(|line| line.contains("is damaged")).count() as u64;
                assert_eq!(warned, 5 - seq, "seed {seed}");
            }
            (None, Err(error)) => assert!(error.contains("no mirror of hub"), "seed {seed}: {error}"),
            (newest, found) => panic!("seed {seed}: {newest:?}, {found:?}"),
        }
    }
}

#[tokio::test]
async fn what_would_be_a_guess_is_refused() {
    let scene = Scene::new().await;
    let empty = scene.rebuild("near", None, false).await.unwrap_err();
    assert!(empty.contains("no hub is mirrored"), "{empty}");
    let old = scene.state(3);
    scene.put(0, &old).await;
    // Another destination knows more.
    scene.put(1, &HubState { seq: 4, ..old.clone() }).await;
    let older = scene.rebuild("near", None, false).await.unwrap_err();
    assert!(older.contains("--from far"), "{older}");
    assert_eq!(scene.rebuild("far", None, true).await.unwrap().state.seq, 4);
    // A newer hub wrote last: what is older is no answer.
    let future = format::seal_as(format::VERSION + 1, &HubState { seq: 5, ..old.clone() }.to_wire());
    scene.put_bytes(1, &old.id, 5, future).await;
    let newer = scene.rebuild("far", None, false).await.unwrap_err();
    assert!(newer.contains("newer version of walhub-hub"), "{newer}");
    let newer = scene.rebuild("near", None, false).await.unwrap_err();
    assert!(newer.contains("newer version of walhub-hub"), "{newer}");
    assert!(!scene.data().exists());
    for (from, why) in [
        ("nowhere", "no destination called"),
        ("file:///elsewhere", "is none of the destinations"),
        ("ftp://x/y", "is no kind of place"),
    ] {
        let error = scene.rebuild(from, None, false).await.unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn of_several_hubs_the_operator_says_which_unless_one_came_in_the_place_of_the_other() {
    let scene = Scene::new().await;
    let first = scene.state(3);
    scene.put(0, &first).await;
    let second = HubState { id: HubId::draw(), predecessor: Some(first.id.clone()), ..scene.state(1) };
    scene.put(1, &second).await;
    let succeeded = scene.rebuild("near", None, false).await.unwrap_err();
    assert!(
        succeeded.contains("was rebuilt before") && succeeded.contains(second.id.as_str()),
        "{succeeded}"
    );
    scene.put(0, &second).await;
    assert_eq!(scene.rebuild("near", None, true).await.unwrap().state, second);
    let stranger = HubState { id: HubId::draw(), ..scene.state(7) };
    scene.put(0, &stranger).await;
    let several = scene.rebuild("near", None, false).await.unwrap_err();
    assert!(several.contains("--hub") && several.contains("2 databases of node"), "{several}");
    assert!(several.contains(second.id.as_str()) && !several.contains(first.id.as_str()), "{several}");
    for state in [&second, &stranger] {
        assert_eq!(scene.rebuild("near", Some(&state.id), true).await.unwrap().state, *state);
    }
    let unknown = scene.rebuild("near", Some(&HubId::draw()), true).await.unwrap_err();
    assert!(unknown.contains("is not mirrored there"), "{unknown}");
}

#[tokio::test]
async fn files_of_another_history_are_not_taken_for_ours() {
    let scene = Scene::new().await;
    let mut state = scene.state(1);
    state.databases[0].lineage = LINEAGE ^ 1;
    state.databases.push(state.databases[0].clone());
    state.databases[2].key = "node/gone.db".parse().unwrap();
    scene.put(0, &state).await;
    let report = scene.rebuild("near", None, false).await.unwrap();
    let said: Vec<_> = report.databases.iter().map(|d| (d.position, d.verdict)).collect();
    let expected =
        [(None, Verdict::Stranger { lineage: LINEAGE }), (None, Verdict::Complete), (None, Verdict::Nothing)];
    assert_eq!(said, expected);
    let buffer = DiskBuffer::open(Options::new(scene.data(), 1 << 28)).unwrap();
    assert!(buffer.databases().iter().all(|database| database.position.is_none()));
}

#[tokio::test]
async fn the_configuration_can_be_had_without_one() {
    let scene = Scene::new().await;
    scene.put(0, &scene.state(1)).await;
    let url = format!("file://{}/near", scene.dir.path().display());
    let text = skeleton(None, &url, None, &CancellationToken::new()).await.unwrap();
    assert_eq!(text, "listen: x\n");
}
