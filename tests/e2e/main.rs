//! The whole chain, driven from outside: real processes, real servers, real writers. One file per theme.

mod replicate;
