//! The command `audit-exporter`.

fn main() {}
