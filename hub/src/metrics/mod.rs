//! The hub's state for monitoring: one page of numbers that a Prometheus server, or `curl`, asks for.
//!
//! - [`names`]: every metric, once. - [`collect`], [`survey`], [`drills`]: their values, read where the status reads them.
//! - [`page`]: the text. - [`serve`]: the way to it.
//!
//! # Invariants
//! - Nothing is counted for the page alone that the hub does not know anyway; a page is made when it is asked for.
//! - Its size follows destinations and agents, not databases ([`names`]).
//! - It is no way to change anything, and whatever is sent here costs the hub a bounded amount ([`serve`]).
//!
//! Non-goals: pushing; histograms; metrics of agents, which the hub says what it knows of.

mod collect;
mod drills;
mod names;
mod page;
mod serve;
mod survey;

use crate::buffer::WalBuffer;
use crate::drills::Drills;
use crate::fleet::Fleet;
use crate::jobs::Jobs;
use crate::retain::Retainer;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use walhub_common::task::TaskGroup;

/// Where the values are.
pub struct Sources {
    /// Agents, destinations, compaction.
    pub fleet: Arc<Fleet>,
    /// Databases, and how full it is.
    pub buffer: Arc<dyn WalBuffer>,
    /// Drills.
    pub drills: Drills,
    /// Retention.
    pub retainer: Retainer,
    /// Restores on nodes.
    pub jobs: Jobs,
    /// Start of the hub, Unix ms.
    pub started_ms: i64,
}

/// A port that is taken, and nobody answers there yet.
#[derive(Debug)]
pub struct Door(TcpListener);

impl Door {
    /// Takes the port.
    pub async fn open(address: SocketAddr) -> io::Result<Door> {
        TcpListener::bind(address).await.map(Door)
    }

    /// The address it listens on, with the real port.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers until `tasks` end.
    pub fn serve(self, sources: Sources, tasks: &TaskGroup) {
        serve::serve(self.0, sources, tasks);
    }
}
