//! One failure that many callers hear of.

use super::BufferError;
use std::io;

/// What became of a group of segments.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    doing: &'static str,
    kind: io::ErrorKind,
    text: String,
}

impl Failure {
    /// Of this step.
    pub(super) fn new(doing: &'static str, source: &io::Error) -> Self {
        Self { doing, kind: source.kind(), text: source.to_string() }
    }

    /// For one caller.
    pub(super) fn to_error(&self) -> BufferError {
        BufferError::Io { doing: self.doing, source: io::Error::new(self.kind, self.text.clone()) }
    }
}
