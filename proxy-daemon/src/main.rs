//! The proxy-daemon program: reads the command line, runs the app, reports errors.

use std::error::Error;
use std::process::ExitCode;

use proxy_daemon::cli::Cli;
use proxy_daemon::{app, telemetry};

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(message) if message.use_stderr() => {
            telemetry::end(Some(message.to_string().trim_end()));
            return ExitCode::from(u8::try_from(message.exit_code()).unwrap_or(2));
        }
        Err(help) => {
            // Nobody is left to tell if even this cannot be written.
            help.print().unwrap_or_default();
            return ExitCode::SUCCESS;
        }
    };
    let mut held = app::Held::default();
    match app::start(&cli, &mut held) {
        Ok(()) => {
            telemetry::end(None);
            ExitCode::SUCCESS
        }
        Err(error) => {
            telemetry::end(Some(&complaint(&error)));
            ExitCode::from(error.exit_code())
        }
    }
}

/// The error and what caused it, on one line.
fn complaint(error: &app::AppError) -> String {
    let mut text = format!("proxy-daemon: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
