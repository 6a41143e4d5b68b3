//! The `sessile` binary. The library implements all commands.

use std::process::ExitCode;

/// The allocator of musl takes much more time (docs/install.md).
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sessile::cli::main()
}
