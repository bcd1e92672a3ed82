//! Who hears what of which copies, also when destinations and policies change in between.

use super::*;
use crate::copies::{Policy, Rules, Selector};
use crate::testutil::{key, place};

const THREE: Policy = Policy { copies: 3, media: 1, offsite: 0, immutable: 0 };
const DB: DatabaseId = DatabaseId(1);

fn roster(lanes: &[LaneId], policy: Policy) -> Roster {
    let places = lanes.iter().map(|lane| place(*lane, &format!("d{lane}"))).collect();
    Roster::new(places, Rules::new(Vec::new(), policy))
}

fn board() -> Board {
    Board::new(roster(&[0, 1], THREE))
}

fn txid(n: u64) -> Option<Txid> {
    Txid::new(n)
}

fn post(board: &Board, lane: LaneId, n: u64) {
    board.post_copy(lane, DB, &key("app"), txid(n));
}

fn durable(board: &Board) -> u64 {
    board.row(DB, &key("app")).durable.map_or(0, Txid::get)
}

#[tokio::test]
async fn a_listener_hears_of_durable_transactions_only_and_only_the_newest() {
    let (board, inbox) = (board(), Arc::new(Inbox::default()));
    assert_eq!(board.open(DB, &key("app"), inbox.clone()), None);
    post(&board, 0, 5);
    assert!(inbox.take().is_empty());
    post(&board, 1, 3);
    post(&board, 1, 4);
    inbox.wait().await;
    assert_eq!(inbox.take().into_iter().collect::<Vec<_>>(), [(DB, Txid::new(4).unwrap())]);
    board.close(DB);
    post(&board, 1, 5);
    assert!(inbox.take().is_empty());
    assert_eq!(board.open(DB, &key("app"), inbox), txid(5));
}

#[test]
fn a_copy_that_shrank_shows_and_is_no_news() {
    let (board, inbox) = (board(), Arc::new(Inbox::default()));
    board.open(DB, &key("app"), inbox.clone());
    post(&board, 0, 5);
    post(&board, 1, 5);
    inbox.take();
    post(&board, 1, 0);
    assert!(inbox.take().is_empty());
    assert_eq!(durable(&board), 0);
    assert_eq!((board.row(DB, &key("app")).held(0), board.row(DB, &key("app")).held(1)), (txid(5), None));
    post(&board, 1, 5);
    assert!(inbox.take().is_empty(), "it was told before");
    post(&board, 0, 6);
    post(&board, 1, 6);
    assert_eq!(inbox.take().get(&DB).copied(), txid(6));
}

#[test]
fn a_destination_out_of_service_stops_counting_and_a_new_one_counts_from_nothing() {
    let (board, inbox) = (board(), Arc::new(Inbox::default()));
    board.open(DB, &key("app"), inbox.clone());
    post(&board, 0, 5);
    post(&board, 1, 5);
    assert_eq!(inbox.take().get(&DB).copied(), txid(5));
    board.apply(roster(&[0, 2], THREE));
    assert_eq!(durable(&board), 0);
    post(&board, 1, 9);
    assert_eq!(board.row(DB, &key("app")).held(1), None, "a late post of a lane that is gone");
    board.post_health(1, |health| health.healthy = true);
    assert!(!board.health(1).healthy);
    post(&board, 0, 9);
    post(&board, 2, 4);
    assert_eq!(durable(&board), 4);
    assert!(inbox.take().is_empty(), "less than what was told is no news");
    post(&board, 2, 8);
    assert_eq!(inbox.take().get(&DB).copied(), txid(8));
}

#[test]
fn a_raised_policy_waits_and_a_lowered_one_tells_at_once() {
    let board = Board::new(roster(&[0, 1], Policy::default()));
    let inbox = Arc::new(Inbox::default());
    board.open(DB, &key("app"), inbox.clone());
    post(&board, 0, 5);
    assert_eq!(inbox.take().get(&DB).copied(), txid(5));
    board.apply(roster(&[0, 1], THREE));
    assert_eq!(durable(&board), 0);
    assert!(board.row(DB, &key("app")).missing(Txid::new(5).unwrap()).contains("2 of 3 copies"));
    post(&board, 0, 7);
    assert!(inbox.take().is_empty());
    board.apply(roster(&[0, 1], Policy::default()));
    assert_eq!(inbox.take().get(&DB).copied(), txid(7));
}

#[test]
fn selectors_decide_what_counts_and_what_may_be_given_back() {
    let near = Selector {
        patterns: vec![glob::Pattern::new("*/near").unwrap()],
        destinations: Some(vec!["d0".parse().unwrap()]),
        ..Selector::of_all(Policy::default())
    };
    let places = vec![place(0, "d0"), place(1, "d1")];
    let board = Board::new(Roster::new(places, Rules::new(vec![near], THREE)));
    board.post_copy(0, DB, &key("near"), txid(3));
    board.post_copy(1, DB, &key("near"), txid(9));
    let row = board.row(DB, &key("near"));
    assert_eq!((row.durable, row.held(1)), (txid(3), None));
    assert_eq!(board.of(DB).len(), 1);
    let (far, before) = (DatabaseId(2), board.revision());
    assert!(board.of(far).is_empty(), "nothing is known of it: nothing of it may go");
    board.post_copy(0, far, &key("far"), txid(3));
    assert_ne!(board.revision(), before);
    assert_eq!((board.of(far).len(), board.row(far, &key("far")).durable), (2, None));
}
