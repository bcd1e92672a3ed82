//! Planning a restore (in work).
