//! Tenant networks of one host.
