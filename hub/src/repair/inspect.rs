//! Reads one object whole, and says whether it is what it should be.

use futures_util::StreamExt;
use std::fmt;
use tokio_util::sync::CancellationToken;
use walhub_common::DatabaseKey;
use walhub_common::ltx::{Decoder, Header, LtxError};
use walhub_common::restore::feed::{self, Feed};
use walhub_store::destinations::{DestinationError, Fault};
use walhub_store::restore::{self, DynSource, Piece, Plan, PlannedFile};

/// What is wrong with an object.
#[derive(Debug)]
pub enum Flaw {
    /// It is not there.
    Missing,
    /// Its bytes are not those that were put.
    Corrupt(String),
    /// Its source did not answer, so nobody knows.
    Unanswered(DestinationError),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::Missing => f.write_str("missing"),
            Flaw::Corrupt(reason) => write!(f, "corrupt: {reason}"),
            Flaw::Unanswered(error) => error.fmt(f),
        }
    }
}

impl From<DestinationError> for Flaw {
    fn from(error: DestinationError) -> Flaw {
        match error.fault {
            Fault::NotFound => Flaw::Missing,
            Fault::Corrupt(reason) => Flaw::Corrupt(reason),
            _ => Flaw::Unanswered(error),
        }
    }
}

/// Header, length, every page, the page index and the checksum of a file.
pub async fn inspect(
    source: &DynSource,
    database: &DatabaseKey,
    file: &PlannedFile,
    cancel: &CancellationToken,
) -> Result<Header, Flaw> {
    let plan = Plan { files: vec![file.clone()], reached: file.range.max() };
    let mut pieces = restore::fetch(std::slice::from_ref(source), database, &plan, cancel);
    let (feeder, feed) = feed::channel();
    let reader = tokio::task::spawn_blocking(move || read(feed));
    let failed = loop {
        let fed = match pieces.next().await {
            Some(Ok(Piece::Start(file))) => feeder.file(file.range.to_string()).await,
            Some(Ok(Piece::Data(data))) => feeder.data(data).await,
            Some(Err(error)) => break Some(error),
            None => {
                let _ = feeder.finish(None).await;
                return judged(reader.await);
            }
        };
        if fed.is_err() {
            break None;
        }
    };
    drop(feeder);
    let read = judged(reader.await);
    match failed {
        Some(error) => Err(error.into()),
        None => read,
    }
}

fn judged(read: Result<Result<Header, LtxError>, tokio::task::JoinError>) -> Result<Header, Flaw> {
    match read {
        Ok(read) => read.map_err(|error| Flaw::Corrupt(error.to_string())),
        Err(error) => Err(Flaw::Corrupt(format!("its reader ended: {error}"))),
    }
}

fn read(mut feed: Feed) -> Result<Header, LtxError> {
    let file = feed.next_file()?.ok_or(LtxError::Truncated)?;
    let mut file = Decoder::new(file)?;
    let mut page = Vec::new();
    while file.next_page(&mut page)?.is_some() {}
    file.finish()?;
    Ok(*file.header())
}
