//! The groups of figures.

pub(crate) mod boot;
pub(crate) mod counts;
pub(crate) mod engines;
pub(crate) mod hostfs;
pub(crate) mod kernel;
pub(crate) mod links;
pub(crate) mod net;
pub(crate) mod numa;
pub(crate) mod profile;
pub(crate) mod remote;
pub(crate) mod rest;
pub(crate) mod scale;
pub(crate) mod single;
pub(crate) mod topologies;
pub(crate) mod ubd;

const UPSTREAM: &str = "upstream";
