//! The `storm` command: source, sink and checker for SMTP relays.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match storm::cli::main() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("storm: {error:#}");
            ExitCode::from(2)
        }
    }
}
