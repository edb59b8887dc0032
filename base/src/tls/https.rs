//! Whether a listener for people and programs speaks HTTPS, as a configuration says it.

use super::{LEAF_LIFE, Leaf, PrivateCa};
use crate::vault::refuse_readable_by_others;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc};

/// Whether a listener speaks HTTPS, and where its certificate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Https {
    /// Plain HTTP.
    Off,
    /// A certificate of the role's own CA.
    Own,
    /// PEM files.
    Files,
}

/// The PEM files of [`Https::Files`].
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// PEM certificate chain.
    pub certificate: &'a Path,
    /// PEM private key.
    pub key: &'a Path,
    /// How the configuration names the key, for messages.
    pub key_name: &'static str,
}

impl Https {
    /// The certificate to serve with; none for plain HTTP. An own one is for these names and addresses.
    ///
    /// # Errors
    /// When files are missing, do not belong together, or the key can be read by others; when the CA cannot issue.
    pub fn leaf(
        self,
        ca: impl FnOnce() -> anyhow::Result<Arc<PrivateCa>>,
        names: Vec<String>,
        files: Files<'_>,
    ) -> anyhow::Result<Option<Arc<Leaf>>> {
        match self {
            Https::Off => Ok(None),
            Https::Own => Leaf::issued_by(ca()?, names, LEAF_LIFE).context("names").map(Some),
            Https::Files => {
                refuse_readable_by_others(files.key).context(files.key_name)?;
                Leaf::from_files(files.certificate, files.key).context("certificate").map(Some)
            }
        }
    }
}
