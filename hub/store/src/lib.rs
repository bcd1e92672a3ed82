//! Places that keep copies of databases, and the planning of a restore from them: shared by the hub and by hubctl,
//! which can restore without a hub. No gRPC, no buffer, no database of the hub's own in here.

pub mod compact;
pub mod destinations;
pub mod pack;
pub mod restore;
#[cfg(any(test, feature = "testutil"))]
pub mod testutil;
