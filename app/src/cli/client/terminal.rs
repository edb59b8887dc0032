//! The terminal: what is said to it, how wide it is, and what is typed without being shown.

use anyhow::{Context, bail};
use homing_protocol::Secret;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, BufRead, IsTerminal, Write, stderr, stdin, stdout};

/// Characters of a line at a terminal; nothing where the output is none, and lines are as long as they are.
pub(super) fn width() -> Option<usize> {
    if !stdout().is_terminal() {
        return None;
    }
    tcgetwinsize(stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns >= 40)
}

/// Columns and rows of the terminal.
pub(super) fn size() -> (usize, usize) {
    let size = tcgetwinsize(stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or((80, 24), |size| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// Whether colours are wanted: at a terminal, and nobody has said otherwise (no-color.org).
pub(super) fn has_colours() -> bool {
    stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A line for people, beside what the command puts out.
pub(in crate::cli) fn say(text: &str) {
    let _ = writeln!(stderr().lock(), "{text}");
}

/// The next line of standard input.
pub(in crate::cli) fn line(what: &str) -> anyhow::Result<Secret> {
    let mut text = String::new();
    stdin().lock().read_line(&mut text).with_context(|| format!("cannot read {what} from standard input"))?;
    let line = Secret::new(text.trim_end_matches(['\r', '\n']));
    if line.is_empty() {
        bail!("standard input has no line with {what}");
    }
    Ok(line)
}

/// Asks at the terminal, without showing what is typed.
pub(super) fn ask(what: &str, instead: &str) -> anyhow::Result<Secret> {
    if !stdin().is_terminal() {
        bail!("{what} is wanted: say {instead} (there is no terminal to ask at)");
    }
    let _ = write!(stderr().lock(), "{what}: ").and_then(|()| stderr().flush());
    let typed = {
        let _hidden = Hidden::begin().context("cannot hide what is typed")?;
        line(what)
    };
    say("");
    typed
}

/// The alternate screen, on which keys come as they are pressed; the terminal is as it was when this is dropped.
pub(super) struct Screen(rustix::termios::Termios);

impl Screen {
    pub fn begin() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        // Ctrl-C is a key as well, so that the screen is left in order.
        raw.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(stdin(), OptionalActions::Flush, &raw)?;
        let _ = write!(stdout().lock(), "\x1b[?1049h\x1b[?25l").and_then(|()| stdout().flush());
        Ok(Screen(before))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write!(stdout().lock(), "\x1b[?25h\x1b[?1049l").and_then(|()| stdout().flush());
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.0);
    }
}

/// The terminal does not show what is typed until this is dropped.
pub(in crate::cli) struct Hidden(rustix::termios::Termios);

impl Hidden {
    pub fn begin() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL & before.local_modes);
        tcsetattr(stdin(), OptionalActions::Flush, &hidden)?;
        Ok(Hidden(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.0);
    }
}
