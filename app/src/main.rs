//! `homing`: the server side.

fn main() {}
