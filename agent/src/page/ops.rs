//! What a monitoring system asks the agent: `/healthz` and `/metrics` (Prometheus text format 0.0.4).
//!
//! Made from the [`Status`] that people see, so that both always say the same; no metrics library for seven
//! gauges. No secret is in it, and no address.

use crate::status::{CameraHealth, Colour, Status};
use http::StatusCode;
use std::fmt::Write;

/// `Content-Type` of [`metrics`].
pub const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// 200 `ok`, or 503 with a line for each thing that is wrong.
pub fn health(status: &Status) -> (StatusCode, String) {
    let mut faults = String::new();
    for camera in &status.cameras {
        if let CameraHealth::Bad(error) = &camera.health {
            faults += &format!("{}: {error}\n", camera.name);
        }
    }
    // The light tells of one camera, too.
    if faults.is_empty() && status.light.colour == Colour::Red {
        faults = format!("{}\n", status.light.message);
    }
    if faults.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, faults)
}

/// Every figure, as gauges.
pub fn metrics(status: &Status) -> String {
    let cameras_good = status.cameras.iter().filter(|camera| camera.health == CameraHealth::Good).count();
    let uplinks_connected = status.uplinks.iter().filter(|uplink| uplink.is_connected()).count();
    let at_dispatcher = status.dispatcher.as_ref().is_some_and(|dispatcher| dispatcher.is_connected());
    let figures = [
        (
            "step",
            "Step of the connection flow that is under way or was reached last, 0 for none",
            step(status),
        ),
        (
            "pressed",
            "1 while the one-click button keeps it phoning home",
            status.window_until.is_some().into(),
        ),
        ("dispatcher_connected", "1 while it is connected to a dispatcher", at_dispatcher.into()),
        ("uplinks", "Tunnel servers that it was sent to", status.uplinks.len()),
        ("uplinks_connected", "Tunnel servers that it is connected to", uplinks_connected),
        ("cameras", "Cameras behind it", status.cameras.len()),
        ("cameras_good", "Cameras that answer and take user and password", cameras_good),
    ];
    let mut text = String::new();
    for (name, help, value) in figures {
        writeln!(text, "# HELP homing_agent_{name} {help}.\n# TYPE homing_agent_{name} gauge")
            .and_then(|()| writeln!(text, "homing_agent_{name} {value}"))
            .expect("writing to a String does not fail");
    }
    text
}

fn step(status: &Status) -> usize {
    status.step.map_or(0, |step| step.number().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{CameraStatus, Connection, Light};

    /// Goal: a camera that refuses makes the agent unhealthy, with its name and what to check, and is counted.
    #[test]
    fn a_camera_that_refuses() {
        let camera =
            |name: &str, health| CameraStatus { name: name.into(), address: "10.0.0.2:554".into(), health };
        let mut status = Status {
            step: Some(homing_protocol::Step::Tunnel),
            uplinks: vec![Connection { address: "203.0.113.5:8443".into(), state: "Connected", error: None }],
            cameras: vec![camera("Gate", CameraHealth::Good), camera("Yard", CameraHealth::Good)],
            ..Status::default()
        };
        assert_eq!(health(&status), (StatusCode::OK, "ok\n".to_owned()));
        status.cameras[1].health = CameraHealth::Bad("wrong user or password".into());
        assert_eq!(
            health(&status),
            (StatusCode::SERVICE_UNAVAILABLE, "Yard: wrong user or password\n".to_owned())
        );
        let text = metrics(&status);
        for line in ["step 7", "uplinks_connected 1", "cameras 2", "cameras_good 1", "pressed 0"] {
            assert!(text.contains(&format!("\nhoming_agent_{line}\n")), "{line}: {text}");
        }
        status.cameras.pop();
        status.light = Light {
            colour: Colour::Red,
            message: "The dispatcher's certificate is unknown.".into(),
            ..Light::default()
        };
        assert_eq!(health(&status).1, "The dispatcher's certificate is unknown.\n");
    }
}
