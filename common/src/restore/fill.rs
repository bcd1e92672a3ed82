//! Pages on their way into a sink: the loop that all restores by pages have in common.

use super::frames::Frames;
use super::{PageSink, RestoreError};
use std::io;

/// Pages of a point, each once, in any order, from wherever.
pub trait Pages {
    /// Why they broke off.
    type Error: Send;

    /// The next ones; `None` when all came. Dropping the future gives the restore up.
    fn next(&mut self) -> impl Future<Output = Result<Option<Frames>, Self::Error>> + Send;
}

/// Why the sink is not full. Nothing is left of it, but for what [`PageSink::break_off`] keeps.
#[derive(Debug)]
pub enum Unfilled<E> {
    /// No more pages came.
    Broken {
        /// Why.
        error: E,
        /// The same restore goes on from what came.
        kept: bool,
    },
    /// They could not be written.
    Sink(RestoreError),
}

/// Sends all `pages` to the sink. `came` hears of compressed bytes; when `over` ends first, that is why no more came. An `Ok` is no
/// proof yet: [`PageSink::finish`] says whether every page was good, and written.
pub async fn fill<P: Pages, E: From<P::Error>>(
    sink: PageSink,
    pages: &mut P,
    mut came: impl FnMut(u64),
    over: impl Future<Output = E>,
) -> Result<PageSink, Unfilled<E>> {
    let sender = sink.sender();
    let pump = async {
        while let Some(frames) = pages.next().await? {
            came(frames.blocks.iter().map(|block| u64::from(block.bytes)).sum());
            if sender.send(frames).await.is_err() {
                break; // the sink has failed, and knows why
            }
        }
        Ok::<(), E>(())
    };
    let pumped = tokio::select! {
        biased;
        error = over => Err(error),
        pumped = pump => pumped,
    };
    drop(sender);
    let Err(error) = pumped else { return Ok(sink) };
    // Also after an interruption: what was written must be kept or taken away.
    let path = sink.temp().to_owned();
    match tokio::task::spawn_blocking(move || sink.break_off()).await {
        Ok(Ok(kept)) => Err(Unfilled::Broken { error, kept }),
        Ok(Err(error)) => Err(Unfilled::Sink(error)),
        Err(panic) => Err(Unfilled::Sink(RestoreError::io("write", &path)(io::Error::other(panic)))),
    }
}
