//! Effects: the kernel and HAProxy, looked at and changed. Nothing here decides.
//!
//! All of it is blocking code on a thread of its own ([`worker`]), because a namespace is a property of a thread.

pub(crate) mod apply;
pub(crate) mod flows;
pub(crate) mod haproxy;
pub(crate) mod links;
pub(crate) mod netlink;
pub(crate) mod nft;
pub(crate) mod observe;
pub(crate) mod tap;
pub(crate) mod worker;
