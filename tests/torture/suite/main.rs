//! A minute of torture, and the proof that the torture sees anything.

mod torture;
