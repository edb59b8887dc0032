//! Which management server is meant, and who one is there.
//!
//! In this order: arguments, the environment (`HOMING_URL`, `HOMING_TOKEN`, `HOMING_CA`), and
//! `~/.config/homing/client.toml`, which must be its owner's alone. The token itself is never an argument.

use super::{Failure, terminal, usage};
use anyhow::{Context, anyhow, bail};
use clap::Args;
use homing_base::{
    client::{ApiClient, Auth},
    vault::refuse_readable_by_others,
};
use homing_protocol::Secret;
use serde::Deserialize;
use std::{
    env,
    path::{Path, PathBuf},
};

/// What the commands of this folder read from the environment: no settings of a server.
pub(crate) const VARIABLES: [&str; 3] = ["HOMING_URL", "HOMING_TOKEN", "HOMING_CA"];

#[derive(Args)]
pub(in crate::cli) struct Server {
    /// The management server's address, https://host:port; else HOMING_URL, or url in ~/.config/homing/client.toml.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A file with an API token, - for standard input; else HOMING_TOKEN, or token in client.toml.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM of the CA that the server's certificate is from, if the public web does not know it; else HOMING_CA, or ca.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// `client.toml`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Kept {
    url: Option<String>,
    token: Option<Secret>,
    ca: Option<PathBuf>,
}

impl Server {
    /// A client of it.
    pub fn client(&self) -> Result<ApiClient, Failure> {
        self.connect(env::var_os("HOME").map(PathBuf::from)).map_err(usage)
    }

    fn connect(&self, home: Option<PathBuf>) -> anyhow::Result<ApiClient> {
        let folder = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
        let folder = folder.or_else(|| home.map(|home| home.join(".config")));
        let file = folder.map(|folder| folder.join("homing/client.toml"));
        let kept = file.as_deref().map(read_kept).transpose()?.unwrap_or_default();
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());

        let url = self.url.clone().or_else(|| variable("HOMING_URL")).or(kept.url).ok_or_else(|| {
            anyhow!("which management server? Say --url, HOMING_URL, or url in ~/.config/homing/client.toml")
        })?;
        let token = match &self.token_file {
            Some(file) if file == Path::new("-") => Some(terminal::line("an API token")?),
            Some(file) => Some(read_secret(file)?),
            None => variable("HOMING_TOKEN").map(Secret::new).or(kept.token),
        };
        let token = token.ok_or_else(|| {
            anyhow!(
                "who are you there? Make an API token on the page (Users and access), and say --token-file, \
                 HOMING_TOKEN, or token in ~/.config/homing/client.toml"
            )
        })?;
        let ca = self.ca.clone().or_else(|| variable("HOMING_CA").map(PathBuf::from)).or(kept.ca);
        let trust = ca.as_deref().map(read_ca).transpose()?;
        ApiClient::new("management server", &url, &Auth::Bearer(token), trust.as_deref())
    }

    /// The CA that is named on the command line.
    pub fn trust(&self) -> anyhow::Result<Option<String>> {
        self.ca.as_deref().map(read_ca).transpose()
    }
}

fn read_ca(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read the CA {}", file.display()))
}

/// Nothing where there is none.
fn read_kept(file: &Path) -> anyhow::Result<Kept> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    refuse_readable_by_others(file)?;
    // The text of the error would show the line, and the line may be the token's.
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let place = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        anyhow!("{}, line {place}: it takes url, token and ca, each as text in quotes", file.display())
    })
}

/// The first line of a file that is its owner's alone.
pub(in crate::cli) fn read_secret(file: &Path) -> anyhow::Result<Secret> {
    refuse_readable_by_others(file)?;
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    match text.lines().next().map(str::trim_end) {
        Some(line) if !line.is_empty() => Ok(Secret::new(line)),
        _ => bail!("{} is empty", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn write(file: &Path, text: &str, mode: u32) {
        std::fs::write(file, text).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_kept_is_for_its_owner_alone_and_a_mistake_in_it_repeats_no_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("client.toml");
        assert!(read_kept(&file).unwrap().url.is_none());
        write(&file, "url = \"https://vms:8080\"\ntoken = \"homing_sesame\"\n", 0o600);
        let kept = read_kept(&file).unwrap();
        assert!(kept.token.is_some_and(|token| token.matches("homing_sesame")));
        write(&file, "url = \"https://vms:8080\"\ntokn = \"homing_sesame\"\n", 0o600);
        let error = read_kept(&file).err().unwrap().to_string();
        assert!(error.contains("line 2") && !error.contains("sesame"), "{error}");
        write(&file, "", 0o640);
        assert!(read_kept(&file).err().unwrap().to_string().contains("chmod 600"));
    }

    #[test]
    fn a_secret_is_the_first_line_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        write(&file, "homing_sesame\nmore\n", 0o600);
        assert!(read_secret(&file).unwrap().matches("homing_sesame"));
        write(&file, "\n", 0o600);
        assert!(read_secret(&file).unwrap_err().to_string().contains("is empty"));
    }
}
