//! `homing plan`: the bandwidth and storage that an installation needs, before anything is bought.
//!
//! Not here: the calculation ([`homing_management::plan`]), which the page asks for, too.

use super::print;
use anyhow::Context;
use clap::{Args, ValueEnum};
use homing_management::plan::{Codec, Plan, SPARE, Scene, Wish};

/// Lines below the table.
const NOTES: &str = "\
Rates are of IP packets while every camera streams and nothing is lost. A line that is full delays every camera, so
order at least what stands under \"line to order\", with a guaranteed upstream: asymmetric lines (cable, DSL, mobile)
name the downstream first. docs/network.md says how this is reckoned.
";

#[derive(Args)]
pub(super) struct Options {
    /// Remote sites.
    #[arg(long, default_value_t = 50)]
    sites: u32,
    /// Cameras at each site.
    #[arg(long, default_value_t = 4)]
    cameras: u32,
    /// Video of one camera in kbit/s, as its encoder is set. 500 if neither this nor --resolution is given.
    #[arg(long)]
    kbit: Option<u32>,
    /// Estimates the bitrate from this instead, such as 1920x1080.
    #[arg(long, value_name = "WxH", conflicts_with = "kbit", value_parser = resolution)]
    resolution: Option<(u32, u32)>,
    /// Pictures a second.
    #[arg(long, default_value_t = 8.0)]
    fps: f64,
    /// What the camera encodes with; for the estimate.
    #[arg(long, value_enum, default_value = "h264")]
    codec: Encoding,
    /// How much moves: a store room, a shop, a street; for the estimate.
    #[arg(long, value_enum, default_value = "normal")]
    scene: Motion,
    /// Sound of one camera in kbit/s; 64 for G.711.
    #[arg(long, default_value_t = 0)]
    audio_kbit: u32,
    /// The lines are IPv6.
    #[arg(long)]
    ipv6: bool,
    /// How many days recordings are kept.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// Prints JSON: bits a second and bytes.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Encoding {
    H264,
    H265,
    Mjpeg,
}

#[derive(Clone, Copy, ValueEnum)]
enum Motion {
    Quiet,
    Normal,
    Busy,
}

fn resolution(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once(['x', 'X', '×']).and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    sides.ok_or_else(|| "write width x height, such as 1920x1080".to_owned())
}

pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let wish = Wish {
        sites: options.sites,
        cameras: options.cameras,
        kbit: options.kbit,
        width: options.resolution.map(|(width, _)| width),
        height: options.resolution.map(|(_, height)| height),
        fps: options.fps,
        codec: match options.codec {
            Encoding::H264 => Codec::H264,
            Encoding::H265 => Codec::H265,
            Encoding::Mjpeg => Codec::Mjpeg,
        },
        scene: match options.scene {
            Motion::Quiet => Scene::Quiet,
            Motion::Normal => Scene::Normal,
            Motion::Busy => Scene::Busy,
        },
        audio_kbit: options.audio_kbit,
        ipv6: options.ipv6,
        days: options.days,
    };
    let plan = wish.plan()?;
    if options.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&plan).context("JSON")?));
    } else {
        print(&told(&plan));
    }
    Ok(())
}

fn told(plan: &Plan) -> String {
    let Plan { wish, camera, site, centre, storage } = plan;
    let mut text = format!(
        "{} sites × {} cameras × {} at {} pictures/s",
        wish.sites,
        wish.cameras,
        rate(camera.video_bps),
        wish.fps
    );
    if let Some(range) = &camera.estimate {
        text.push_str(&format!(
            "\nThe bitrate is an estimate: {} to {} must be expected. Measure one camera of the kind, then give --kbit.",
            rate(range.low_bps),
            rate(range.high_bps)
        ));
    }
    text.push_str(&format!("\n\n{:<24}{:>14}{:>14}{:>16}\n", "", "upstream", "downstream", "line to order"));
    let order = |way: &str, bps: u64| format!("{} {way}", rate(bps));
    text.push_str(&format!(
        "{:<24}{:>14}{:>14}{:>16}\n",
        "each site",
        rate(site.upstream_bps),
        rate(site.downstream_bps),
        order("up", site.order_bps)
    ));
    text.push_str(&format!(
        "{:<24}{:>14}{:>14}{:>16}\n",
        "the centre",
        rate(centre.upstream_bps),
        rate(centre.downstream_bps),
        order("down", centre.order_bps)
    ));
    text.push_str(&format!(
        "\nOne camera on the line: {} ({} % above its video and sound). Spare in the line to order: {} %.\n",
        rate(camera.wire_bps),
        camera.overhead_percent,
        (SPARE * 100.0).round()
    ));
    text.push_str(&format!(
        "Recordings: {} a camera and day, {} a day, {} in {} days (retention_gb = {}).\n\n",
        size(storage.per_camera_day_bytes),
        size(storage.per_day_bytes),
        size(storage.total_bytes),
        wish.days,
        storage.total_bytes.div_ceil(1_000_000_000)
    ));
    text.push_str(NOTES);
    text
}

/// `2.1 Mbit/s`.
fn rate(bps: u64) -> String {
    scaled(bps as f64, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

/// `32.4 TB`.
fn size(bytes: u64) -> String {
    scaled(bytes as f64, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// Three digits and a decimal prefix.
fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = usize::from(value < 100.0 && unit > 0) + usize::from(value < 9.995 && unit > 0);
    format!("{value:.decimals$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units_that_fit() {
        assert_eq!(rate(500_000), "500 kbit/s");
        assert_eq!(rate(2_130_000), "2.13 Mbit/s");
        assert_eq!(rate(106_400_000), "106 Mbit/s");
        assert_eq!(rate(999_600), "1.00 Mbit/s");
        assert_eq!(size(32_400_000_000_000), "32.4 TB");
        assert_eq!(size(0), "0 B");
    }

    /// Goal: who reads the table finds the white paper's numbers, with the way's cost, and what to order.
    #[test]
    fn the_table_says_what_each_line_needs() {
        let text = told(&Wish::default().plan().unwrap());
        assert!(text.starts_with("50 sites × 4 cameras × 500 kbit/s at 8 pictures/s\n"), "{text}");
        let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(row("each site").contains("2.1") && row("each site").ends_with("Mbit/s up"), "{text}");
        assert!(row("the centre").ends_with("Mbit/s down"), "{text}");
        assert!(text.contains("retention_gb = 32") && !text.contains("estimate"), "{text}");
        let estimated = Wish { width: Some(1280), height: Some(720), ..Wish::default() };
        assert!(told(&estimated.plan().unwrap()).contains("is an estimate"));
        assert_eq!(resolution("1920x1080"), Ok((1920, 1080)));
        assert!(resolution("hd").is_err());
    }
}
