//! The whole chain, driven from outside: real processes, real servers, real writers. One file per theme.

mod company;
mod config_faults;
mod crash;
mod documents;
mod fault_matrix;
mod full_buffer;
mod heal;
mod hostile_client;
mod hub_deaths;
mod hub_lost;
mod hubctl;
mod identity;
mod images;
mod import;
mod layering;
mod local;
mod packed;
mod phantom;
mod point_in_time;
mod real_input;
mod reload;
mod replicate;
mod retention;
mod rhythm;
mod snapshot;
mod take_over;
