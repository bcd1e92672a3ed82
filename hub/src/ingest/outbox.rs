//! What waits to be said to one agent: messages in order, acks merged while they wait.
//!
//! Invariant: its length is bounded by the messages that asked for an answer, orders as long as there is room, and two acks per handle.

use std::collections::{HashMap, VecDeque};
use walhub_common::Txid;
use walhub_proto::v1::replicate_response::Message;
use walhub_proto::v1::{Ack, AckLevel, ReplicateResponse};

enum Item {
    Message(Message),
    Ack(u32, AckLevel),
}

/// The queue.
#[derive(Default)]
pub(super) struct Outbox {
    items: VecDeque<Item>,
    acks: HashMap<(u32, AckLevel), Txid>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Queues a message.
    pub(super) fn push(&mut self, message: Message) {
        self.items.push_back(Item::Message(message));
    }

    /// Queues a cumulative ack; one that still waits is raised instead.
    pub(super) fn ack(&mut self, handle: u32, level: AckLevel, txid: Txid) {
        match self.acks.entry((handle, level)) {
            std::collections::hash_map::Entry::Occupied(mut waiting) => {
                let newest = txid.max(*waiting.get());
                waiting.insert(newest);
            }
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(txid);
                self.items.push_back(Item::Ack(handle, level));
            }
        }
    }

    /// The next message.
    pub(super) fn pop(&mut self) -> Option<ReplicateResponse> {
        let message = match self.items.pop_front()? {
            Item::Message(message) => message,
            Item::Ack(handle, level) => {
                let txid = self.acks.remove(&(handle, level)).expect("BUG: a queued ack has no value");
                Message::Ack(Ack { handle, level: level.into(), txid: txid.get() })
            }
        };
        Some(ReplicateResponse { message: Some(message) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhub_proto::v1::Welcome;

    #[test]
    fn waiting_acks_are_merged_and_order_is_kept() {
        let mut outbox = Outbox::default();
        let txid = |n| Txid::new(n).unwrap();
        outbox.ack(1, AckLevel::Buffered, txid(1));
        outbox.push(Message::Welcome(Welcome::default()));
        outbox.ack(1, AckLevel::Buffered, txid(5));
        outbox.ack(1, AckLevel::Buffered, txid(4));
        outbox.ack(1, AckLevel::Durable, txid(2));
        assert_eq!(outbox.len(), 3);
        let said: Vec<_> = std::iter::from_fn(|| outbox.pop()).map(|r| r.message.unwrap()).collect();
        let ack = |level: AckLevel, txid| Message::Ack(Ack { handle: 1, level: level.into(), txid });
        assert_eq!(
            said,
            [ack(AckLevel::Buffered, 5), Message::Welcome(Welcome::default()), ack(AckLevel::Durable, 2)]
        );
        assert!(outbox.is_empty());
    }
}
