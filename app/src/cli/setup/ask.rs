//! Questions and answers: from a flag, from the terminal, or line by line from a pipe, each checked at once.
//!
//! Not here: what is asked. Invariant: an answer that does not pass its check is never used; from a flag it ends the
//! command, typed it is asked for again.

use super::Refused;
use crate::cli::client::terminal::{Hidden, say};
use anyhow::{Context, bail};
use homing_protocol::Secret;
use std::io::{BufRead, IsTerminal, Write, stderr, stdin};

/// A question, in the words of the person who has to answer it.
pub(super) struct Question<'a> {
    /// A few words.
    pub title: &'a str,
    /// The flag that answers it.
    pub flag: &'a str,
    /// What it is for.
    pub explanation: &'a str,
    /// What an empty answer means.
    pub default: Option<String>,
}

/// Who is asked.
pub(super) struct Asker {
    /// Nobody: flags and defaults have to do.
    pub silent: bool,
}

impl Asker {
    /// An answer that passes `check`.
    ///
    /// # Errors
    /// When a flag's or a default's value does not pass, or nothing answers.
    pub fn ask<T>(
        &self,
        question: &Question<'_>,
        flag: Option<String>,
        mut check: impl FnMut(&str) -> anyhow::Result<T>,
    ) -> Result<T, Refused> {
        let given = match (flag, self.silent) {
            (Some(given), _) => Some(given),
            (None, true) => Some(question.default.clone().ok_or_else(|| {
                Refused::Usage(format!("{} is wanted: nothing stands for it by default", question.flag))
            })?),
            (None, false) => None,
        };
        if let Some(given) = given {
            return check(&given)
                .map_err(|error| Refused::Unfit(format!("{} {given}: {error:#}", question.flag)));
        }
        say(&format!("\n{}\n  {}", question.title, question.explanation.replace('\n', "\n  ")));
        loop {
            let typed = match typed(&prompt(question.default.as_deref()), false, question.flag)? {
                typed if typed.is_empty() => question.default.clone(),
                typed => Some(typed),
            };
            let Some(answer) = typed else {
                say("  An answer is needed.");
                continue;
            };
            match check(&answer) {
                Ok(answer) => return Ok(answer),
                Err(error) => say(&format!("  No: {error:#}.")),
            }
        }
    }

    /// A secret, typed without being shown; an empty one is none.
    pub fn ask_secret(&self, question: &Question<'_>) -> Result<Option<Secret>, Refused> {
        if self.silent {
            return Ok(None);
        }
        say(&format!("\n{}\n  {}", question.title, question.explanation.replace('\n', "\n  ")));
        let typed = typed(&prompt(question.default.as_deref()), true, question.flag)?;
        Ok(Some(Secret::new(typed)).filter(|secret| !secret.is_empty()))
    }

    /// Yes or no; nobody asked is no.
    pub fn confirm(&self, title: &str, explanation: &str, default: bool) -> Result<bool, Refused> {
        if self.silent {
            return Ok(false);
        }
        let default = if default { "yes" } else { "no" };
        let question = Question { title, flag: "yes or no", explanation, default: Some(default.to_owned()) };
        self.ask(&question, None, yes_or_no)
    }
}

/// `true` for yes.
pub(super) fn yes_or_no(answer: &str) -> anyhow::Result<bool> {
    match answer.to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(true),
        "n" | "no" => Ok(false),
        _ => bail!("yes or no"),
    }
}

fn prompt(default: Option<&str>) -> String {
    default.map_or("  > ".to_owned(), |default| format!("  [{default}] > "))
}

/// The next line.
fn typed(prompt: &str, hidden: bool, instead: &str) -> Result<String, Refused> {
    let _ = write!(stderr().lock(), "{prompt}").and_then(|()| stderr().flush());
    let is_terminal = stdin().is_terminal();
    let hiding = (hidden && is_terminal).then(Hidden::begin);
    let _hidden = hiding.transpose().context("cannot hide what is typed")?;
    let mut line = String::new();
    let read = stdin().lock().read_line(&mut line).context("cannot read the answer")?;
    if !is_terminal || hidden {
        say("");
    }
    if read == 0 {
        return Err(Refused::Usage(format!(
            "standard input has ended where an answer was wanted: {instead}"
        )));
    }
    Ok(line.trim().to_owned())
}
