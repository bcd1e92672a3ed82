//! Files that the hub has and this node lacks: from the restore service into a blocking reader.

use crate::ship::connect::status_reason;
use tonic::transport::Channel;
use walhub_common::limits::MAX_MESSAGE_BYTES;
use walhub_common::restore::feed::Feeder;
use walhub_common::{AgentName, DatabaseName, Pos, Txid};
use walhub_proto::v1::restore_request::Target;
use walhub_proto::v1::restore_response::Message;
use walhub_proto::v1::restore_service_client::RestoreServiceClient;
use walhub_proto::v1::{DatabaseRef, RestoreRequest};

/// Streams what follows `after` up to `until` into `feeder`. A failure reaches the reader as well.
pub(super) async fn fetch(
    channel: Channel,
    database: (&AgentName, &DatabaseName),
    after: Option<Txid>,
    until: Pos,
    feeder: Feeder,
) -> Result<(), String> {
    let request = RestoreRequest {
        database: Some(DatabaseRef { agent: database.0.to_string(), name: database.1.to_string() }),
        after_txid: after.map_or(0, Txid::get),
        source: String::new(),
        target: Some(Target::Txid(until.txid.get())),
    };
    match forward(channel, request, &feeder).await {
        Ok(()) => {
            // The reader may have failed; it says so itself.
            let _ = feeder.finish(Some(until.checksum)).await;
            Ok(())
        }
        Err(text) => {
            let _ = feeder.fail(text.clone()).await;
            Err(text)
        }
    }
}

async fn forward(channel: Channel, request: RestoreRequest, feeder: &Feeder) -> Result<(), String> {
    let mut client = RestoreServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut messages = client.restore(request).await.map_err(|s| status_reason(&s))?.into_inner();
    while let Some(message) = messages.message().await.map_err(|s| status_reason(&s))? {
        let sent = match message.message {
            Some(Message::File(file)) => {
                let range = file.range.unwrap_or_default();
                feeder.file(format!("{} {}-{}", file.source, range.min, range.max)).await
            }
            Some(Message::Data(data)) => feeder.data(data).await,
            Some(Message::Plan(_)) | None => Ok(()),
        };
        if sent.is_err() {
            return Err("the files could not be applied".into());
        }
    }
    Ok(())
}
