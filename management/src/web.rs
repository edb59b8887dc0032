//! The web page: files of `management/web/`, compiled in.
//!
//! Pages are asked for again each time (`ETag`); what they are made of lives under an address with a
//! fingerprint of all of it, and is kept by browsers for good.

use axum::{
    Router,
    extract::Path,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// Where a page names the folder of its files.
const STATIC_MARK: &str = "{{static}}";

struct File {
    path: &'static str,
    content: &'static str,
}

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(File { path: $path, content: include_str!(concat!("../web/", $path)) }),*]
    };
}

const PAGE: &str = include_str!("../web/index.html");
const SIGN_IN: &str = include_str!("../web/sign-in.html");

const FILES: &[File] = files![
    "base.css",
    "parts.css",
    "dialogs.css",
    "places.css",
    "narrow.css",
    "logo.svg",
    "js/api.js",
    "js/certificates.js",
    "js/csv.js",
    "js/device-dialogs.js",
    "js/dialog.js",
    "js/dialogs.js",
    "js/dom.js",
    "js/feed.js",
    "js/format.js",
    "js/live.js",
    "js/main.js",
    "js/mp4.js",
    "js/page-audit.js",
    "js/page-camera.js",
    "js/page-device.js",
    "js/page-home.js",
    "js/page-labels.js",
    "js/page-list.js",
    "js/page-plan.js",
    "js/page-servers.js",
    "js/page-settings.js",
    "js/playback.js",
    "js/server-dialogs.js",
    "js/sign-in.js",
    "js/sites.js",
    "js/steps.js",
    "js/store.js",
    "js/theme.js",
    "js/timeline.js",
    "js/tree.js",
    "js/types.js",
];

static FINGERPRINT: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    for file in FILES {
        hash.update(file.path);
        hash.update(file.content);
    }
    URL_SAFE_NO_PAD.encode(&hash.finalize()[..12])
});

/// Pages and their files.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(async |headers: HeaderMap| page(PAGE, &headers)))
        .route("/sign-in", get(async |headers: HeaderMap| page(SIGN_IN, &headers)))
        .route("/favicon.ico", get(async || file("logo.svg", "public, max-age=86400")))
        .route("/static/{fingerprint}/{*path}", get(static_file))
}

async fn static_file(Path((fingerprint, path)): Path<(String, String)>) -> Response {
    // A page of another version, still open: it gets what there is now, but must not keep it.
    let cache = if fingerprint == *FINGERPRINT { "public, max-age=31536000, immutable" } else { "no-store" };
    file(&path, cache)
}

fn file(path: &str, cache: &'static str) -> Response {
    let Some(file) = FILES.iter().find(|file| file.path == path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let kind = match path.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    };
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, cache)], file.content).into_response()
}

fn page(template: &str, headers: &HeaderMap) -> Response {
    let folder = format!("/static/{}", *FINGERPRINT);
    let html = template.replace(STATIC_MARK, &folder);
    let tag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&Sha256::digest(&html)[..12]));
    let tag = HeaderValue::from_str(&tag).expect("Base64 is visible ASCII");
    let kept = headers.get(header::IF_NONE_MATCH).is_some_and(|value| *value == tag);
    let head = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private")),
        (header::ETAG, tag),
    ];
    if kept { (StatusCode::NOT_MODIFIED, head).into_response() } else { (head, html).into_response() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A file that nobody lists is not served, and its import fails in the browser only.
    #[test]
    fn every_file_of_the_web_folder_is_compiled_in() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("web");
        let mut found = vec!["index.html".to_owned(), "sign-in.html".to_owned()];
        found.extend(FILES.iter().map(|file| file.path.to_owned()));
        for folder in ["", "js"] {
            for entry in std::fs::read_dir(root.join(folder)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                let served = [".html", ".css", ".svg"].iter().any(|end| name.ends_with(end))
                    || (folder == "js" && name.ends_with(".js"));
                assert!(!served || found.contains(&path), "{path} is not in FILES");
            }
        }
    }

    /// The content security policy refuses all of these, silently for the user.
    #[test]
    fn pages_hold_nothing_inline_and_nothing_from_elsewhere() {
        for page in [PAGE, SIGN_IN] {
            assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains(" onclick="));
            for script in page.split("<script").skip(1) {
                let tag = script.split('>').next().unwrap();
                assert!(tag.contains(" src=\"{{static}}/"), "{tag}");
            }
            let elsewhere = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"));
        }
    }
}
