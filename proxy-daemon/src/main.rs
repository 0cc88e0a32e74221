//! The proxy-daemon program: reads the command line, runs the app, says how it ended.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use proxy_daemon::app;
use proxy_daemon::cli::Cli;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(message) => {
            // Nobody is left to tell if even this cannot be written.
            message.print().unwrap_or_default();
            return ExitCode::from(u8::try_from(message.exit_code()).unwrap_or(2));
        }
    };
    match app::start(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// The error and what caused it, on one line.
fn complain(error: &app::AppError) {
    let mut text = format!("proxy-daemon: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    writeln!(std::io::stderr(), "{text}").unwrap_or_default();
}
