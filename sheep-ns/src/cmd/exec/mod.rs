//! `exec`: a command in new namespaces (`--rootfs`, `--from`), or in a running container.

mod join;
mod once;

use anyhow::Result;

use crate::cli::{Exec, Global};

/// `exec`. The exit code is the command's own; 128+N where signal N ended it.
pub fn run(global: &Global, args: Exec) -> Result<u8> {
    if args.is_one_shot() {
        return once::run(global, &args);
    }
    join::run(global, &args)
}
