//! Proof, before the first real put, that a bucket can be used and that its fence holds.

use super::fault::CallError;
use super::{CloudDestination, location};
use crate::destinations::error::Operation;
use crate::destinations::{Fault, object};
use bytes::Bytes;
use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{ObjectStore, PutMode, PutOptions};
use tokio_util::sync::CancellationToken;

/// Folder of probe objects below the prefix: no agent can have this name, and no reader takes its objects for LTX files.
const FOLDER: &str = ".walhub-probe";
/// More than a probe object has.
const MAX_BYTES: usize = 4096;

impl CloudDestination {
    /// Creates, creates again (must be refused), reads, lists, removes.
    pub(super) async fn probe_bucket(&self, cancel: &CancellationToken) -> Result<(), Fault> {
        let object = location(&self.names.below(&format!("{FOLDER}/{:016x}", rand::random::<u64>())))?;
        let result = self.probe_with(&object, cancel).await;
        if result.is_err() && !cancel.is_cancelled() {
            // It may be there all the same. The first fault is the one to report.
            let _ = self.remove(vec![object.to_string()], cancel).await;
            return result;
        }
        result?;
        self.remove(vec![object.to_string()], cancel).await.map_err(|fault| match fault {
            Fault::Denied(text) => Fault::Denied(format!("deleting a probe object: {text}")),
            fault => fault,
        })
    }

    async fn probe_with(&self, object: &Path, cancel: &CancellationToken) -> Result<(), Fault> {
        let first = Bytes::from(format!("first {object}"));
        self.probe_put(object, first.clone(), cancel).await.map_err(CallError::into_fault)?;
        match self.probe_put(object, Bytes::from(format!("other {object}")), cancel).await {
            Err(CallError::Exists) => {}
            Err(error) => return Err(error.into_fault()),
            Ok(()) => return Err(Fault::NoFence("a second put of one name was accepted".into())),
        }
        let context = self.context(Operation::Probe, object);
        let stream =
            self.read(object.as_ref(), 6..u64::MAX, context, cancel).await.map_err(|error| error.fault)?;
        if object::collect(stream, MAX_BYTES).await.map_err(|error| error.fault)? != first.slice(6..) {
            return Err(Fault::Corrupt("what was written does not come back".into()));
        }
        // The client leaves out an object whose name is the prefix itself.
        let prefix = &object.as_ref()[..object.as_ref().len() - 1];
        let listed = self.page(prefix, PaginatedListOptions::default(), cancel).await?;
        if listed.result.objects.iter().any(|found| found.location == *object) {
            return Ok(());
        }
        Err(Fault::Corrupt("what was written is not listed; walhub needs a store that lists at once".into()))
    }

    async fn probe_put(
        &self,
        object: &Path,
        bytes: Bytes,
        cancel: &CancellationToken,
    ) -> Result<(), CallError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.call(cancel, 0, self.store.put_opts(object, bytes.into(), options)).await.map(drop)
    }
}
