//! What the commands print.
//!
//! Names of tensors, labels, paths and templates come from files of others. Printed as they are, a control sequence
//! among them could clear the screen, forge a line or change the terminal's settings.

use std::any::Any;
use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::{Context, Result};

/// As the standard library's, with control characters escaped. Standard output that cannot be written ends the
/// command with an error (see [`ends_with_output`]).
macro_rules! println {
    () => { $crate::terminal::print("\n") };
    ($($part:tt)*) => { $crate::terminal::print(&$crate::terminal::visible(&(format!($($part)*) + "\n"))) };
}

/// As the standard library's, with control characters escaped.
macro_rules! eprintln {
    () => { ::std::eprintln!() };
    ($($part:tt)*) => { ::std::eprintln!("{}", $crate::terminal::visible(&format!($($part)*))) };
}

/// A text without characters that act on a terminal or change the order of others: they are escaped, except line
/// breaks and tabs.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let acts = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match acts(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// The same on one line.
pub(crate) fn one_line(text: &str) -> String {
    visible(&text.replace(['\n', '\t'], " ")).into_owned()
}

/// Standard output could not be written.
struct OutputFailed(std::io::Error);

/// Prints a text as it is, to be called through `println!`.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Unwinds, so that temporary files are removed on the way.
        resume_unwind(Box::new(OutputFailed(error)));
    }
}

/// Prints the text of a model or a template: to a file or a pipe as it is, to a terminal with control characters
/// escaped.
pub(crate) fn print_text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let shown = if out.is_terminal() { visible(text) } else { Cow::Borrowed(text) };
    out.write_all(shown.as_bytes()).and_then(|()| out.flush()).context(FAILED)
}

/// The message for standard output on a full disk.
pub(crate) const FAILED: &str = "cannot write to standard output";

/// Runs a command; a failure to print is its error.
pub(crate) fn ends_with_output(command: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|payload: Box<dyn Any + Send>| match payload
        .downcast::<OutputFailed>(
    ) {
        Ok(failed) => Err(failed.0).context(FAILED),
        Err(panic) => resume_unwind(panic),
    })
}

/// Lets a write past the limit on the size of files (`ulimit -f`) fail as one to a full disk does, instead of ending
/// the process, which would leave its temporary files.
pub(crate) fn survive_size_limit() {
    #[cfg(unix)]
    // Without it the signal ends the process, as before.
    let _handled = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped() {
        assert_eq!(visible("a\tb\nZürich عربي 🎉"), "a\tb\nZürich عربي 🎉");
        assert_eq!(visible("\x1b[31mred\x07\r"), "\\u{1b}[31mred\\u{7}\\r");
        assert_eq!(visible("a\u{202e}b\u{9b}2J"), "a\\u{202e}b\\u{9b}2J");
        assert_eq!(one_line("a\nb\x1b"), "a b\\u{1b}");
    }
}
