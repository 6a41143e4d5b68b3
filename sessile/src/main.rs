//! The `sessile` binary. The library implements all commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    sessile::cli::main()
}
