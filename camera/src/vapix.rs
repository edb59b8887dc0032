//! The few VAPIX parameters by which recorders recognise a device, in the form of `param.cgi`.
//!
//! Reading, and changing the one user's password by `pwdgrp.cgi`. Pure.

use crate::camera::Camera;
use homing_protocol::{Secret, secret::Credentials};
use serde::Deserialize;

/// Where users are changed.
pub(crate) const USERS_PATH: &str = "/axis-cgi/pwdgrp.cgi";

/// The maker.
pub(crate) const BRAND: &str = "Homing";
/// The model.
pub(crate) const MODEL: &str = "Simulated camera";

/// All parameters with their full names.
pub(crate) fn parameters(camera: &Camera, rtsp_port: u16) -> Vec<(&'static str, String)> {
    let settings = camera.source.settings();
    vec![
        ("root.Brand.Brand", BRAND.into()),
        ("root.Brand.ProdFullName", format!("{BRAND} {MODEL}")),
        ("root.Brand.ProdNbr", MODEL.into()),
        ("root.Brand.ProdShortName", format!("{BRAND} {MODEL}")),
        ("root.Brand.ProdType", "Network Camera".into()),
        ("root.Image.I0.Appearance.Resolution", format!("{}x{}", settings.width, settings.height)),
        ("root.Image.I0.Name", camera.name.clone()),
        ("root.ImageSource.NbrOfSources", "1".into()),
        ("root.Network.RTSP.Port", rtsp_port.to_string()),
        ("root.Properties.API.HTTP.Version", "3".into()),
        ("root.Properties.Audio.Audio", if settings.audio { "yes" } else { "no" }.into()),
        ("root.Properties.Firmware.Version", env!("CARGO_PKG_VERSION").into()),
        ("root.Properties.Image.Format", "h264".into()),
        ("root.Properties.System.SerialNumber", camera.serial.to_string()),
    ]
}

/// What `pwdgrp.cgi` is asked.
#[derive(Deserialize)]
pub(crate) struct UserForm {
    action: String,
    user: String,
    pwd: Secret,
}

/// The answer to `pwdgrp.cgi`, a page with a sentence.
pub(crate) fn change_user(camera: &Camera, form: UserForm) -> String {
    let user = Credentials::new(form.user, form.pwd);
    let said = match form.action.as_str() {
        "update" if camera.set_password(&user) => "Modified account.",
        "update" => "Error: there is no such account, or no password.",
        _ => "Error: only action=update is possible.",
    };
    format!("<html><body>{said}</body></html>\n")
}

/// The answer to `param.cgi?action=…&group=…`; several groups are separated by commas, and `root.` may
/// be left out.
pub(crate) fn answer(all: &[(&str, String)], action: Option<&str>, groups: Option<&str>) -> String {
    match action {
        Some("list") => {}
        Some(_) => return "# Error: only action=list is possible\n".into(),
        None => return "# Error: action is missing\n".into(),
    }
    let mut text = String::new();
    for group in groups.unwrap_or("root").split(',') {
        let group = group.trim().trim_end_matches(".*").trim_end_matches('.');
        let within = |name: &str| {
            let at = |rest: &str| {
                rest.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            at(name) || at(name.trim_start_matches("root."))
        };
        let before = text.len();
        for (name, value) in all.iter().filter(|(name, _)| within(name)) {
            text += &format!("{name}={value}\n");
        }
        if text.len() == before {
            // What was asked for is not repeated: nobody needs it, and it may be anything.
            text += "# Error: Error getting param in group\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_with_and_without_root() {
        let all = [
            ("root.Brand.Brand", "Homing".to_owned()),
            ("root.Properties.System.SerialNumber", "020000000001".to_owned()),
        ];
        let list = |group| answer(&all, Some("list"), group);
        assert_eq!(list(Some("root.Brand")), "root.Brand.Brand=Homing\n");
        assert_eq!(
            list(Some("Properties.System.SerialNumber")),
            "root.Properties.System.SerialNumber=020000000001\n"
        );
        assert_eq!(list(Some("Brand,Properties.*")).lines().count(), 2);
        assert_eq!(list(None).lines().count(), 2);
        assert!(list(Some("root.Bra")).starts_with("# Error"));
        assert!(answer(&all, Some("update"), None).starts_with("# Error"));
        assert!(answer(&all, None, None).starts_with("# Error"));
    }
}
