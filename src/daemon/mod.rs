//! The composition root: puts guard, link, store, data path, core and interfaces together.
//!
//! | module | does |
//! |---|---|
//! | [`agent`] | process start: guard or worker, runtime, orderly end |
//! | [`down`] | clusters that are not up, and why |
//! | [`start`] | what answers the API until all is up, and tries until it is |
//! | [`node`] | what all clusters share; routes link events; answers the API |
//! | [`specs`] | the specs in force, validated, durable |
//! | [`exchange`] | specs between the two nodes, and what the other one refuses |
//! | [`cluster`] | one cluster: volumes, streams, addresses, services, checkers around its core |
//! | [`beat`] | what heartbeats carry |
//! | [`status`] | what `skc status` shows |

pub mod agent;
pub mod beat;
pub mod cluster;
pub mod down;
pub mod exchange;
pub mod node;
pub mod operate;
pub mod specs;
pub mod start;
pub mod status;
mod unlike;
