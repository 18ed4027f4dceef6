//! The store against a real folder, a real HTTP server on loopback, and crashes.
