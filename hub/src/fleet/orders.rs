//! The desk between those who order something of agents and the streams of the agents.
//!
//! An order that was posted lies there until it is withdrawn, and is said once on every stream of its agent: whoever posts
//! need not know when the agent comes, and what was lost with a stream is said again on the next. Updates are merged; the
//! newest of an order counts.
//!
//! Invariants: an agent can speak about orders that lie here and were made for it, and about nothing else; what waits for
//! the owner is bounded by the orders that lie here.
//!
//! Non-goals: what is ordered and why (`crate::jobs`), keeping orders through a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use walhub_common::AgentName;
use walhub_proto::v1::{OrderUpdate, RestoreOrder};

/// Longest reason that is kept.
const MAX_REASON_CHARS: usize = 2000;

/// Whether an agent can be told something now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// It listens.
    Here,
    /// It is connected, and too old to take orders.
    Deaf,
    /// It is not connected.
    Away,
}

/// What agents said, and whose presence changed, since the last look.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct News {
    /// The newest update of each order.
    pub updates: BTreeMap<String, OrderUpdate>,
    /// Agents that came or went.
    pub moved: BTreeSet<AgentName>,
}

#[derive(Default)]
struct Line {
    chair: Option<(bool, Arc<Notify>)>,
    orders: BTreeMap<String, RestoreOrder>,
    /// Ids to say on the present stream.
    unsaid: BTreeSet<String>,
}

#[derive(Default)]
struct Inner {
    lines: BTreeMap<AgentName, Line>,
    news: News,
}

/// The desk. Clones are the same desk.
#[derive(Clone, Default)]
pub struct OrderDesk {
    inner: Arc<Mutex<Inner>>,
    bell: Arc<Notify>,
}

/// One stream's place at the desk; leaving it says that the agent is away.
pub struct Chair {
    desk: OrderDesk,
    agent: AgentName,
    bell: Arc<Notify>,
}

impl OrderDesk {
    /// A stream of `agent` begins. Of an agent there is one at a time.
    pub fn sit(&self, agent: &AgentName, takes_orders: bool) -> Chair {
        let bell = Arc::new(Notify::new());
        let mut inner = self.lock();
        let line = inner.lines.entry(agent.clone()).or_default();
        line.chair = Some((takes_orders, bell.clone()));
        line.unsaid = if takes_orders { line.orders.keys().cloned().collect() } else { BTreeSet::new() };
        if !line.unsaid.is_empty() {
            bell.notify_one();
        }
        inner.news.moved.insert(agent.clone());
        drop(inner);
        self.bell.notify_one();
        Chair { desk: self.clone(), agent: agent.clone(), bell }
    }

    /// Leaves an order for an agent; one with the same id is replaced, and said again.
    pub fn post(&self, agent: &AgentName, order: RestoreOrder) {
        let mut inner = self.lock();
        let line = inner.lines.entry(agent.clone()).or_default();
        if let Some((true, bell)) = &line.chair {
            line.unsaid.insert(order.id.clone());
            bell.notify_one();
        }
        line.orders.insert(order.id.clone(), order);
    }

    /// Takes an order away; what the agent says about it from now on is not heard.
    pub fn withdraw(&self, agent: &AgentName, id: &str) {
        let mut inner = self.lock();
        inner.news.updates.remove(id);
        if let Some(line) = inner.lines.get_mut(agent) {
            line.orders.remove(id);
            line.unsaid.remove(id);
        }
        inner.tidy(agent);
    }

    /// Whether an agent can be told something now.
    pub fn presence(&self, agent: &AgentName) -> Presence {
        match self.lock().lines.get(agent).and_then(|line| line.chair.as_ref()) {
            Some((true, _)) => Presence::Here,
            Some((false, _)) => Presence::Deaf,
            None => Presence::Away,
        }
    }

    /// Waits until there is something new, and takes it. One task asks. Cancel safe.
    pub async fn news(&self) -> News {
        loop {
            let rung = self.bell.notified();
            let news = std::mem::take(&mut self.lock().news);
            if news != News::default() {
                return news;
            }
            rung.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Agents that are away and have nothing to do need no line.
    fn tidy(&mut self, agent: &AgentName) {
        if self.lines.get(agent).is_some_and(|line| line.chair.is_none() && line.orders.is_empty()) {
            self.lines.remove(agent);
        }
    }
}

impl Chair {
    /// Waits for the next order to say. Cancel safe.
    pub async fn next(&self) -> RestoreOrder {
        loop {
            let rung = self.bell.notified();
            if let Some(order) = self.try_next() {
                return order;
            }
            rung.await;
        }
    }

    fn try_next(&self) -> Option<RestoreOrder> {
        let mut inner = self.desk.lock();
        let line = inner.lines.get_mut(&self.agent)?;
        let id = line.unsaid.pop_first()?;
        line.orders.get(&id).cloned()
    }

    /// The agent spoke about an order.
    pub fn update(&self, mut update: OrderUpdate) {
        let mut inner = self.desk.lock();
        if !inner.lines.get(&self.agent).is_some_and(|line| line.orders.contains_key(&update.id)) {
            return;
        }
        if update.message.len() > MAX_REASON_CHARS {
            update.message = update.message.chars().take(MAX_REASON_CHARS).collect();
        }
        inner.news.updates.insert(update.id.clone(), update);
        drop(inner);
        self.desk.bell.notify_one();
    }
}

impl Drop for Chair {
    fn drop(&mut self) {
        let mut inner = self.desk.lock();
        let Some(line) = inner.lines.get_mut(&self.agent) else { return };
        // A newer stream may have its chair already.
        if !line.chair.as_ref().is_some_and(|(_, bell)| Arc::ptr_eq(bell, &self.bell)) {
            return;
        }
        line.chair = None;
        line.unsaid.clear();
        inner.news.moved.insert(self.agent.clone());
        inner.tidy(&self.agent);
        drop(inner);
        self.desk.bell.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn agent(name: &str) -> AgentName {
        AgentName::new(name).unwrap()
    }

    fn order(id: &str) -> RestoreOrder {
        RestoreOrder { id: id.into(), ..RestoreOrder::default() }
    }

    fn update(id: &str, bytes: u64) -> OrderUpdate {
        OrderUpdate { id: id.into(), bytes, ..OrderUpdate::default() }
    }

    #[tokio::test]
    async fn an_order_waits_for_its_agent_and_is_said_on_every_stream_until_it_is_withdrawn() {
        let (desk, a) = (OrderDesk::default(), agent("a"));
        desk.post(&a, order("1"));
        for _ in 0..2 {
            let chair = desk.sit(&a, true);
            assert_eq!(chair.next().await.id, "1");
            assert!(chair.next().now_or_never().is_none(), "once on a stream");
            assert_eq!(desk.presence(&a), Presence::Here);
        }
        assert_eq!(desk.presence(&a), Presence::Away);
        let chair = desk.sit(&a, true);
        desk.withdraw(&a, "1");
        assert!(chair.next().now_or_never().is_none());
        desk.post(&a, order("2"));
        assert_eq!(chair.next().await.id, "2");
        drop((chair, desk.sit(&a, false)));
        desk.withdraw(&a, "2");
        assert!(desk.lock().lines.is_empty(), "nothing is kept of agents that are away");
    }

    #[tokio::test]
    async fn an_old_agent_is_never_sent_an_order() {
        let (desk, a) = (OrderDesk::default(), agent("a"));
        let chair = desk.sit(&a, false);
        desk.post(&a, order("1"));
        assert!(chair.next().now_or_never().is_none());
        assert_eq!(desk.presence(&a), Presence::Deaf);
        let newer = desk.sit(&a, true);
        drop(chair);
        assert_eq!(desk.presence(&a), Presence::Here, "the end of an older stream is not the agent's");
        assert_eq!(newer.next().await.id, "1");
    }

    #[tokio::test]
    async fn updates_are_merged_and_those_of_foreign_orders_are_not_heard() {
        let (desk, a, b) = (OrderDesk::default(), agent("a"), agent("b"));
        let (one, two) = (desk.sit(&a, true), desk.sit(&b, true));
        assert_eq!(desk.news().await.moved, [a.clone(), b].into());
        desk.post(&a, order("1"));
        one.update(update("1", 5));
        one.update(update("1", 7));
        one.update(update("made up", 1));
        two.update(update("1", 99));
        let news = desk.news().await;
        assert_eq!(news.updates.into_values().collect::<Vec<_>>(), [update("1", 7)]);
        assert!(desk.news().now_or_never().is_none());
        one.update(update("1", 8));
        desk.withdraw(&a, "1");
        drop(one);
        let news = desk.news().await;
        assert!(news.updates.is_empty() && news.moved == [a].into());
    }
}
