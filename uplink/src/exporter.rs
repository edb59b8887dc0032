//! The TLS 1.3 exporter (RFC 8446 §7.5) of a connection that runs on rustls' unbuffered API.
//!
//! That API, which makes an idle uplink small, cannot export keying material itself. What it can do is hand the
//! exporter secret to a `KeyLog` while the handshake goes on. [`ExporterCapture`] is one that keeps exactly this secret,
//! for the connection whose bytes are being processed on this thread, and logs nothing; a test compares the
//! outcome with what rustls exports at the other end.
//!
//! Not here: TLS 1.2, which has another exporter and no use for one in an uplink.

use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use rustls::{KeyLog, SupportedCipherSuite, Tls13CipherSuite};
use std::cell::RefCell;
use std::sync::Arc;

const LABEL: &str = "EXPORTER_SECRET";

thread_local! {
    /// Set by rustls within a call that processes bytes, taken right after that call.
    static CAPTURED: RefCell<Option<OkmBlock>> = const { RefCell::new(None) };
}

/// Keeps the exporter secret for [`take`]; passes everything that the configuration's own key log wants on to it.
#[derive(Debug)]
pub(crate) struct ExporterCapture(pub Arc<dyn KeyLog>);

impl KeyLog for ExporterCapture {
    fn will_log(&self, label: &str) -> bool {
        label == LABEL || self.0.will_log(label)
    }

    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        if label == LABEL && secret.len() <= OkmBlock::MAX_LEN {
            CAPTURED.with_borrow_mut(|captured| *captured = Some(OkmBlock::new(secret)));
        }
        if self.0.will_log(label) {
            self.0.log(label, client_random, secret);
        }
    }
}

/// The secret that rustls derived since the last call on this thread.
pub(crate) fn take() -> Option<OkmBlock> {
    CAPTURED.with_borrow_mut(Option::take)
}

/// TLS-Exporter(label, context, 32) under the exporter secret.
pub(crate) fn export(
    suite: SupportedCipherSuite,
    secret: &OkmBlock,
    label: &[u8],
    context: &[u8],
) -> Option<[u8; 32]> {
    let suite = suite.tls13()?;
    let hash = suite.common.hash_provider;
    let mut derived = [0; OkmBlock::MAX_LEN];
    let derived = derived.get_mut(..hash.output_len())?;
    expand_label(&*expander(suite, secret), label, hash.hash(&[]).as_ref(), derived)?;
    let mut output = [0; 32];
    expand_label(
        &*expander(suite, &OkmBlock::new(derived)),
        b"exporter",
        hash.hash(context).as_ref(),
        &mut output,
    )?;
    Some(output)
}

fn expander(suite: &Tls13CipherSuite, secret: &OkmBlock) -> Box<dyn HkdfExpander> {
    suite.hkdf_provider.expander_for_okm(secret)
}

/// HKDF-Expand-Label (RFC 8446 §7.1); none if a length does not fit.
fn expand_label(expander: &dyn HkdfExpander, label: &[u8], context: &[u8], output: &mut [u8]) -> Option<()> {
    const PREFIX: &[u8] = b"tls13 ";
    let output_length = u16::try_from(output.len()).ok()?.to_be_bytes();
    let label_length = [u8::try_from(PREFIX.len() + label.len()).ok()?];
    let context_length = [u8::try_from(context.len()).ok()?];
    expander
        .expand_slice(&[&output_length, &label_length, PREFIX, label, &context_length, context], output)
        .ok()
}
