//! `decent`: the developer's and provider's client (comes with the next commit).
fn main() {}
