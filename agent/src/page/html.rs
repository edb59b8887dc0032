//! What the page looks like: one button, one light, and below it what there is to know.
//!
//! Written by hand and without a template: it has to be small. Everything that comes from outside passes
//! through [`escape`].

use crate::Label;
use crate::status::{CameraHealth, Colour, Connection, Status};
use homing_protocol::Step;
use std::fmt::Write;

/// `/page.css`
pub const STYLE: &str = include_str!("page.css");

/// `/page.js`
pub const SCRIPT: &str = include_str!("page.js");

/// The page with the button.
pub fn page(status: &Status, details: bool) -> String {
    let serial = status.serial.map(|serial| serial.to_string()).unwrap_or_default();
    let light = &status.light;
    let message = if details { escape(&light.message) } else { String::new() };
    let details = if details {
        format!(r#"<section class="details">{}</section>"#, details_of(status))
    } else {
        r#"<p><a href="/details">Details</a></p>"#.to_owned()
    };
    let body = format!(
        r#"<main id="live">
<header><p class="product">Homing</p><p class="serial">{serial}</p></header>
<section class="light" aria-live="polite"><span id="lamp" class="lamp {}" aria-hidden="true"></span>
<div><h1 id="word">{}</h1><p>{message}</p></div></section>
<div><form method="post" action="/press" id="press"><button type="submit">Connect</button></form>
<p class="hint">One press lets this device look for its owner for a while. Registering it takes the number and
the key on its <a href="/label">label</a>.</p></div>
{details}
</main><script src="/page.js"></script>"#,
        colour_name(light.colour),
        escape(light.word),
    );
    document(&format!("{} – {serial}", light.word), &body)
}

fn details_of(status: &Status) -> String {
    let mut html = String::new();
    for warning in &status.warnings {
        write!(html, r#"<p class="warning">{}</p>"#, escape(warning)).expect("writing to a string");
    }
    html.push_str("<ul>");
    let mut row = |what: &str, name: &str, colour: &str, state: &str, error: Option<&str>| {
        // The light says it already, beginning in upper case.
        let said = |error: &&str| status.light.message.contains(error.get(1..).unwrap_or(error));
        let error = error.filter(|error| !said(error));
        let error = error.map_or(String::new(), |error| format!("<small>{}</small>", escape(error)));
        write!(
            html,
            r#"<li><span class="what">{what}</span><span class="name">{}</span><span class="state"><i class="{colour}"></i>{state}</span>{error}</li>"#,
            escape(short(name)),
        )
        .expect("writing to a string");
    };
    if let Some(step) = status.step {
        let name = step.name().replace('-', " ");
        row("Step", &name, "grey", &format!("{} of {}", step.number(), Step::ALL.len()), None);
    }
    let colour_of = |connection: &Connection| match (connection.state, &connection.error) {
        ("Connected", _) => "green",
        (_, Some(_)) => "red",
        _ => "blue",
    };
    if let Some(dispatcher) = &status.dispatcher {
        let colour = colour_of(dispatcher);
        row("Dispatcher", &dispatcher.address, colour, dispatcher.state, dispatcher.error.as_deref());
    }
    for uplink in &status.uplinks {
        row("Tunnel server", &uplink.address, colour_of(uplink), uplink.state, uplink.error.as_deref());
    }
    for camera in &status.cameras {
        let name = format!("{} · {}", camera.name, camera.address);
        match &camera.health {
            CameraHealth::Unknown => row("Camera", &name, "grey", "Not looked at yet", None),
            CameraHealth::Good => row("Camera", &name, "green", "Good", None),
            CameraHealth::Bad(error) => row("Camera", &name, "red", "Not good", Some(error)),
        }
    }
    html.push_str("</ul>");
    html
}

/// `host:port` of an address that says nothing more.
fn short(address: &str) -> &str {
    let host = address.strip_prefix("https://").and_then(|rest| rest.strip_suffix('/'));
    host.filter(|host| !host.contains('/')).unwrap_or(address)
}

/// The page with the label.
pub fn label(label: &Label) -> String {
    let body = format!(
        r#"<main class="label"><header><p class="product">Homing</p></header>
{}
<dl><dt>Serial number</dt><dd><code>{}</code></dd><dt>Owner authentication key</dt><dd><code>{}</code></dd></dl>
<p class="hint">Whoever knows both may register this device. Keep it like a key.</p>
<footer><a href="/">Back</a></footer></main>"#,
        label.to_svg(),
        label.serial,
        label.oak.label()
    );
    document("Label", &body)
}

fn document(title: &str, body: &str) -> String {
    format!(
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{}</title><link rel="stylesheet" href="/page.css"></head>
<body>{body}</body></html>
"#,
        escape(title)
    )
}

fn colour_name(colour: Colour) -> &'static str {
    match colour {
        Colour::Grey => "grey",
        Colour::Blue => "blue",
        Colour::Amber => "amber",
        Colour::Green => "green",
        Colour::Red => "red",
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::CameraStatus;

    #[test]
    fn what_comes_from_outside_cannot_become_markup() {
        let evil = "<script>'\"&".to_owned();
        let mut status = Status::default();
        status.light.message.clone_from(&evil);
        status.warnings.push(evil.clone());
        status.uplinks.push(Connection {
            address: evil.clone(),
            state: "Offline",
            error: Some(evil.clone()),
        });
        status.cameras.push(CameraStatus {
            name: evil.clone(),
            address: evil.clone(),
            health: CameraHealth::Bad(evil.clone()),
        });
        let html = page(&status, true);
        assert!(!html.contains("<script>'"), "{html}");
        // Message, warning, address, name and address of the camera; errors are what the light says.
        assert_eq!(html.matches("&lt;script&gt;").count(), 5);
    }

    #[test]
    fn without_details_nothing_but_the_light_and_the_button_is_shown() {
        let mut status = Status::default();
        status.light.message = "secret-ish".into();
        status.warnings.push("secret-ish".into());
        status.uplinks.push(Connection {
            address: "secret-ish".into(),
            state: "Offline",
            error: Some("secret-ish".into()),
        });
        assert!(!page(&status, false).contains("secret-ish"));
        let details = page(&status, true);
        assert!(details.contains("secret-ish") && details.contains("Tunnel server"));
    }
}
