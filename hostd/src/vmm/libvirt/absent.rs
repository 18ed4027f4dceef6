//! In place of `connection` in a hostd that was built without libvirt: every call says so.

use std::time::Duration;

use super::Totals;
use crate::vmm::VmmError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub uuid: String,
    pub running: bool,
}

#[derive(Clone)]
pub(super) struct Connection;

fn absent<T>() -> Result<T, VmmError> {
    Err(VmmError::Unsupported {
        adapter: super::NAME,
        why: "this hostd was built without libvirt; build it with the cargo feature `libvirt`".to_owned(),
    })
}

impl Connection {
    pub(super) fn new(_uri: &str) -> Self {
        Self
    }
    pub(super) async fn versions(&self, _: Duration) -> Result<(u32, u32), VmmError> {
        absent()
    }
    pub(super) async fn find(&self, _: &str, _: Duration) -> Result<Option<Found>, VmmError> {
        absent()
    }
    pub(super) async fn create_paused(&self, _: String, _: Duration) -> Result<(), VmmError> {
        absent()
    }
    pub(super) async fn resume(&self, _: &str, _: Duration) -> Result<(), VmmError> {
        absent()
    }
    pub(super) async fn press_power(&self, _: &str, _: Duration) -> Result<(), VmmError> {
        absent()
    }
    pub(super) async fn destroy(&self, _: &str, _: Duration) -> Result<(), VmmError> {
        absent()
    }
    pub(super) async fn live_xml(&self, _: &str, _: Duration) -> Result<String, VmmError> {
        absent()
    }
    pub(super) async fn qmp(&self, _: &str, _: String, _: Duration) -> Result<String, VmmError> {
        absent()
    }
    pub(super) async fn disk_totals(&self, _: &str, _: usize, _: Duration) -> Result<Totals, VmmError> {
        absent()
    }
}
