//! Messages no honest agent sends, over real mTLS: each gets its documented answer, nothing of it is stored, and the
//! node's other databases go on.

use walhub_common::Pos;
use walhub_proto::v1::RefusalCode;
use walhub_proto::v1::replicate_request::Message as Request;
use walhub_tests::Cluster;
use walhub_tests::certs::Who;
use walhub_tests::client::Client;
use walhub_tests::segments::{History, Segment, Session, chunk};

/// A hub, and a node with two databases: `target` (handle 1, at TXID 3) and `neighbour` (handle 2, at TXID 1).
struct Scene {
    cluster: Cluster,
    client: Client,
    session: Session,
    target: History,
    neighbour: History,
    sent: Vec<Segment>,
}

impl Scene {
    fn new(name: &str) -> Scene {
        let mut cluster = Cluster::new(name);
        cluster.add_folder("near");
        cluster.start_hub();
        let node = cluster.authority().issue(Who::Agent("node"));
        let client = Client::new(&cluster.address(), &node);
        let (mut session, _) = Session::open(&client, 1, b"one").expect("a good hello");
        let (mut target, mut neighbour) = (History::new(5), History::new(2));
        session.announce(1, "target", 0, None).expect("open");
        session.announce(2, "neighbour", 0, None).expect("open");
        let sent: Vec<Segment> = (1..=3).map(|fill| target.next(2, fill)).collect();
        for segment in &sent {
            session.send_segment(1, segment);
        }
        session.outcome(1, 3).expect("three honest segments");
        session.send_segment(2, &neighbour.next(1, 9));
        session.outcome(2, 1).expect("an honest segment");
        Scene { cluster, client, session, target, neighbour, sent }
    }

    /// `segment` is refused with `code` and a reason a person understands; the hub stays where it was.
    fn refused(&mut self, segment: &Segment, code: RefusalCode, word: &str) {
        self.session.send_segment(1, segment);
        self.refusal(code, word);
    }

    fn refusal(&mut self, code: RefusalCode, word: &str) {
        let refused = self.session.outcome(1, u64::MAX).expect_err("must be refused");
        assert_eq!(refused.code(), code, "{}", refused.message);
        assert!(refused.message.contains(word), "{:?} does not say {word:?}", refused.message);
        let position = refused.position.expect("the hub says where it stands");
        assert_eq!((position.txid, position.checksum), (3, self.sent[2].post));
        self.unchanged();
    }

    /// Nothing was stored, and the other database still takes segments on the same stream.
    fn unchanged(&mut self) {
        assert_eq!(self.cluster.buffered("node", "target").expect("status"), (3, self.sent[2].post));
        let segment = self.neighbour.next(2, 77);
        self.session.send_segment(2, &segment);
        self.session.outcome(2, segment.range.1).expect("the neighbour goes on");
    }

    /// After opening it again the database takes honest segments.
    fn reopens(&mut self) {
        let opened = self.session.announce(1, "target", 0, None).expect("open again");
        assert_eq!(opened.position.expect("position").txid, 3);
        let segment = self.target.next(4, 200);
        self.session.send_segment(1, &segment);
        self.session.outcome(1, 4).expect("an honest segment");
    }
}

#[test]
fn a_duplicate_is_acked_again_and_stored_once() {
    let mut scene = Scene::new("duplicate");
    let again: Vec<Segment> = scene.sent[1..].to_vec();
    for segment in &again {
        scene.session.send_segment(1, segment);
        scene.session.outcome(1, segment.range.1).expect("acked again");
    }
    scene.unchanged();
    let files = scene.cluster.client().files("node", "target", "buffer").expect("files").files;
    let ranges: Vec<_> =
        files.iter().filter_map(|file| file.range.as_ref()).map(|r| (r.min, r.max)).collect();
    assert_eq!(ranges, [(1, 1), (2, 2), (3, 3)]);
}

#[test]
fn a_gap_is_refused_until_the_database_is_opened_again() {
    let mut scene = Scene::new("gap");
    let mut ahead = scene.target.clone();
    ahead.next(3, 50);
    let beyond = ahead.next(3, 51);
    scene.refused(&beyond, RefusalCode::Gap, "up to 3");
    // Even the right one is ignored now: the handle must be opened first.
    let right = scene.target.clone().next(4, 200);
    scene.session.send_segment(1, &right);
    scene.unchanged();
    scene.reopens();
}

#[test]
fn segments_out_of_order_are_a_gap_and_nothing_is_stored_twice() {
    let mut scene = Scene::new("out-of-order");
    let mut ahead = scene.target.clone();
    let (fourth, fifth) = (ahead.next(3, 60), ahead.next(3, 61));
    scene.session.send_segment(1, &fifth);
    scene.session.send_segment(1, &fourth);
    scene.refusal(RefusalCode::Gap, "up to 3");
    let opened = scene.session.announce(1, "target", 0, None).expect("open again");
    assert_eq!(opened.position.expect("position").txid, 3);
    for segment in [&fourth, &fifth] {
        scene.session.send_segment(1, segment);
    }
    scene.session.outcome(1, 5).expect("in order");
    assert_eq!(scene.cluster.buffered("node", "target").expect("status").0, 5);
}

#[test]
fn a_fork_is_refused_by_checksum_by_repeat_and_by_lineage() {
    let mut scene = Scene::new("fork");
    // Another history that reached TXID 3 differently.
    let mut other = History::new(5);
    for fill in 11..=13 {
        other.next(2, fill);
    }
    let follows_other = other.clone().next(2, 14);
    scene.refused(&follows_other, RefusalCode::Fork, "history");

    scene.session.announce(1, "target", 0, None).expect("open again");
    let mut twin = History::new(5);
    let repeats: Vec<Segment> = (21..=23).map(|fill| twin.next(2, fill)).collect();
    scene.refused(&repeats[2], RefusalCode::Fork, "history");

    let lineage = scene.session.announce(1, "target", 0, None).expect("open again").lineage;
    assert_ne!(lineage, 0);
    let refused = scene.session.announce(1, "target", lineage ^ 1, None).expect_err("another lineage");
    assert_eq!(refused.code(), RefusalCode::Fork, "{}", refused.message);
    scene.unchanged();
    scene.reopens();
}

#[test]
fn corrupted_segments_are_refused_whatever_was_changed() {
    let mut scene = Scene::new("corrupted");
    let honest = scene.target.clone().next(3, 90);
    type Damage = fn(&mut Segment);
    let damage: [(&str, Damage); 6] = [
        ("a flipped bit in a page", |segment| {
            let middle = segment.bytes.len() / 2;
            segment.bytes[middle] ^= 0x10;
        }),
        ("a cut tail", |segment| segment.bytes.truncate(segment.bytes.len() - 7)),
        ("bytes after the end", |segment| segment.bytes.extend_from_slice(b"more")),
        ("no LTX at all", |segment| segment.bytes = vec![0x41; 300]),
        ("nothing", |segment| segment.bytes.clear()),
        ("another checksum in the message than in the file", |segment| segment.post ^= 2),
    ];
    for (what, damage) in damage {
        let mut segment = honest.clone();
        damage(&mut segment);
        scene.session.send_segment(1, &segment);
        let refused = scene.session.outcome(1, 4).expect_err(what);
        assert_eq!(refused.code(), RefusalCode::Corrupted, "{what}: {}", refused.message);
        scene.unchanged();
        scene.session.announce(1, "target", 0, None).expect("open again");
    }
    scene.reopens();
}

#[test]
fn a_snapshot_that_lies_about_its_pages_is_refused() {
    let mut scene = Scene::new("lying-snapshot");
    scene.session.announce(3, "liar", 0, None).expect("open");
    let mut segment = History::new(4).next(1, 1);
    // The file is whole, but its image is not the one the message promises: header and message agree on a wrong sum.
    segment.post ^= 4;
    segment.bytes = relabel(&segment.bytes, segment.post);
    scene.session.send_segment(3, &segment);
    let refused = scene.session.outcome(3, 1).expect_err("a wrong image");
    assert_eq!(refused.code(), RefusalCode::Corrupted, "{}", refused.message);
    assert_eq!(scene.cluster.buffered("node", "liar").expect("status").0, 0);
    scene.unchanged();
}

/// The same pages in a file whose header claims `post`.
fn relabel(bytes: &[u8], post: u64) -> Vec<u8> {
    use walhub_common::ltx::{Decoder, Encoder, Provenance};
    let mut decoder = Decoder::new(bytes).expect("header");
    let mut header = *decoder.header();
    let post = walhub_common::Checksum::new(post).expect("bit 63");
    header.provenance = Some(Provenance { pre: None, post });
    let mut encoder = Encoder::new(Vec::new(), header).expect("header");
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page).expect("page") {
        encoder.page(pgno, &page).expect("page");
    }
    encoder.finish().expect("trailer").0
}

#[test]
fn an_oversized_chunk_is_refused_and_the_stream_lives() {
    let mut scene = Scene::new("oversized");
    let honest = scene.target.clone().next(3, 90);
    let data = vec![0x55; walhub_common::limits::MAX_CHUNK_BYTES + 1];
    scene.session.send(Request::Segment(chunk(1, &honest, 0, true, data)));
    scene.refusal(RefusalCode::Oversized, "chunk");
    scene.reopens();
}

#[test]
fn a_message_beyond_every_limit_ends_that_stream_only() {
    let mut scene = Scene::new("huge");
    let honest = scene.target.clone().next(3, 90);
    let data = vec![0x55; 8 * walhub_common::limits::MAX_CHUNK_BYTES];
    scene.session.send(Request::Segment(chunk(1, &honest, 0, true, data)));
    let status = loop {
        match scene.session.answer() {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_ne!(status.code(), tonic::Code::Ok);
    assert_eq!(scene.cluster.buffered("node", "target").expect("status"), (3, scene.sent[2].post));
    // The node comes back at once.
    let (mut session, _) = Session::open(&scene.client, 2, b"two").expect("a new stream");
    session.announce(1, "target", 0, None).expect("open");
    session.send_segment(1, &scene.target.next(4, 200));
    session.outcome(1, 4).expect("an honest segment");
}

#[test]
fn chunks_that_contradict_each_other_are_malformed() {
    let mut scene = Scene::new("chunks");
    let honest = scene.target.clone().next(3, 90);
    let (left, right) = honest.bytes.split_at(honest.bytes.len() / 2);
    // The second chunk carries number 2.
    scene.session.send(Request::Segment(chunk(1, &honest, 0, false, left.to_vec())));
    scene.session.send(Request::Segment(chunk(1, &honest, 2, true, right.to_vec())));
    scene.refusal(RefusalCode::Malformed, "chunk");
    // The same in order is fine.
    scene.session.announce(1, "target", 0, None).expect("open again");
    scene.session.send(Request::Segment(chunk(1, &honest, 0, false, left.to_vec())));
    scene.session.send(Request::Segment(chunk(1, &honest, 1, true, right.to_vec())));
    scene.session.outcome(1, 4).expect("two chunks");
}

#[test]
fn a_name_that_is_no_path_segment_and_an_unknown_handle_are_malformed() {
    let mut scene = Scene::new("names");
    for name in ["../escape", "", "a/b", ".hidden", "name with spaces"] {
        let refused = scene.session.announce(7, name, 0, None).expect_err(name);
        assert_eq!(refused.code(), RefusalCode::Malformed, "{name:?}: {}", refused.message);
    }
    let segment = scene.target.clone().next(3, 90);
    scene.session.send_segment(99, &segment);
    let refused = scene.session.outcome(99, u64::MAX).expect_err("nobody opened 99");
    assert_eq!(refused.code(), RefusalCode::Malformed, "{}", refused.message);
    scene.unchanged();
}

#[test]
fn an_older_image_of_the_node_is_fenced() {
    let mut scene = Scene::new("fenced");
    let (session, welcome) = Session::open(&scene.client, 0, b"two").expect("a node without state");
    assert_eq!(welcome.epoch, 2, "the hub hands out the next epoch");
    drop(session);
    let status = Session::open(&scene.client, 1, b"three").expect_err("an older epoch");
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{}", status.message());
    assert!(status.message().contains("older"), "{}", status.message());
    // The replaced stream has ended, and said why.
    let ended = loop {
        match scene.session.answer() {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), tonic::Code::Aborted, "{}", ended.message());
}

#[test]
fn what_was_refused_is_not_in_any_destination() {
    let mut scene = Scene::new("clean");
    let mut corrupted = scene.target.clone().next(3, 90);
    let middle = corrupted.bytes.len() / 2;
    corrupted.bytes[middle] ^= 1;
    scene.refused(&corrupted, RefusalCode::Corrupted, "checksum");
    scene.reopens();
    scene.cluster.await_everywhere("node", "target", 4);
    let Some(Pos { txid, checksum }) = scene.target.position() else { unreachable!("four segments") };
    let audited = walhub_tests::replica::audit(&scene.cluster.path("near/node/target"));
    assert_eq!(audited, Ok((txid.get(), checksum)));
}
