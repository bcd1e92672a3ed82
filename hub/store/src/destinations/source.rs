//! The body of a put as the object stores read it: in pieces, and more than once.

use super::{Body, Fault};
use bytes::Bytes;
use std::os::unix::fs::FileExt;
use walhub_common::checksum::FileDigest;

/// Pieces in which a body is read to be compared or summed.
const PIECE_BYTES: u64 = 1024 * 1024;

/// A body that can be read in pieces, more than once.
pub(super) struct Source<'a> {
    body: &'a Body,
    /// Bytes.
    pub(super) size: u64,
}

impl<'a> Source<'a> {
    /// Looks at its size.
    pub(super) async fn of(body: &'a Body) -> Result<Self, Fault> {
        let size = match body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File(path) => tokio::fs::metadata(path)
                .await
                .map_err(|error| Fault::Body(format!("{}: {error}", path.display())))?
                .len(),
        };
        Ok(Self { body, size })
    }

    /// `length` bytes from `offset` on.
    pub(super) async fn piece(&self, offset: u64, length: u64) -> Result<Bytes, Fault> {
        let too_large = |_| Fault::Body("a piece does not fit into memory".into());
        let (start, count) =
            (usize::try_from(offset).map_err(too_large)?, usize::try_from(length).map_err(too_large)?);
        let path = match self.body {
            Body::Bytes(bytes) => return Ok(bytes.slice(start..start + count)),
            Body::File(path) => path.clone(),
        };
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; count];
            std::fs::File::open(&path)
                .and_then(|file| file.read_exact_at(&mut bytes, offset))
                .map(|()| Bytes::from(bytes))
                .map_err(|error| Fault::Body(format!("{}: {error}", path.display())))
        });
        read.await.unwrap_or_else(|error| Err(Fault::Body(format!("the reading thread ended: {error}"))))
    }

    /// CRC-64 over all bytes, as text.
    pub(super) async fn digest(&self) -> Result<String, Fault> {
        let mut digest = FileDigest::default();
        let mut offset = 0;
        while offset < self.size {
            let piece = self.piece(offset, PIECE_BYTES.min(self.size - offset)).await?;
            digest.update(&piece);
            offset += piece.len() as u64;
        }
        Ok(digest.finish().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_reads_alike_from_memory_and_from_a_file() {
        let bytes = Bytes::from((0..3_000_000_u32).map(|i| (i % 251) as u8).collect::<Vec<_>>());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("body");
        std::fs::write(&path, &bytes).unwrap();
        let (memory, file) = (Body::Bytes(bytes.clone()), Body::File(path));
        let (memory, file) = (Source::of(&memory).await.unwrap(), Source::of(&file).await.unwrap());
        assert_eq!(memory.digest().await.unwrap(), file.digest().await.unwrap());
        assert_eq!(file.piece(1_999_999, 7).await.unwrap(), bytes.slice(1_999_999..2_000_006));
        assert!(matches!(file.piece(2_999_999, 2).await, Err(Fault::Body(_))));
    }
}
