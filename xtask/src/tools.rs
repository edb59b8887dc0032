//! What the tests need on the machine: found, installed, or named.
//!
//! Debian packages are installed when this runs as root on a machine with `apt-get`; otherwise the
//! command that would install them is printed and the run stops: a test that is skipped because a
//! tool is missing looks the same as one that passes.

use anyhow::{Context, bail, ensure};
use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// cargo-deny, pinned: a new version is a decision, not an accident of the day.
const CARGO_DENY: &str = "0.20.2";

/// How to see that something is there.
enum Sign {
    /// A program on the search path.
    Program(&'static str),
    /// A file or folder.
    File(&'static str),
    /// A GStreamer element.
    Element(&'static str),
    /// A Python expression that the system's interpreter evaluates.
    Python(&'static str),
}

/// Debian package, how to see that it is there, what for.
const NEEDED: &[(&str, Sign, &str)] = &[
    ("ffmpeg", Sign::Program("ffmpeg"), "decodes recordings"),
    ("iproute2", Sign::Program("ip"), "network namespaces of the lab"),
    ("procps", Sign::Program("sysctl"), "forwarding in the lab's routers"),
    ("nftables", Sign::Program("nft"), "firewalls of the lab"),
    ("conntrack", Sign::Program("conntrack"), "a site that gets a new public address"),
    ("tcpdump", Sign::Program("tcpdump"), "that nobody connects towards a site"),
    ("chromium", Sign::Program("chromium"), "browser tests"),
    ("chromium-driver", Sign::Program("chromedriver"), "browser tests"),
    ("systemd", Sign::Program("systemd-analyze"), "that the units are well formed"),
    ("curl", Sign::Program("curl"), "what the RTSP gateway says to a client that only asks"),
    ("openssl", Sign::Program("openssl"), "another TLS than ours"),
    ("python3", Sign::File("/usr/bin/python3"), "peers in the lab"),
    ("python3-venv", Sign::Python("ensurepip"), "a camera that is not ours: the environment of its own"),
    ("python3-gi", Sign::Python("gi"), "the lab's camera"),
    (
        "python3-gst-1.0",
        Sign::Python("gi.require_version('Gst', '1.0'); from gi.repository import Gst; Gst.init([])"),
        "the lab's camera",
    ),
    (
        "gir1.2-gst-rtsp-server-1.0",
        Sign::Python("gi.require_version('GstRtspServer', '1.0')"),
        "the lab's camera",
    ),
    ("gstreamer1.0-tools", Sign::Program("gst-inspect-1.0"), "to look for GStreamer's elements"),
    ("gstreamer1.0-plugins-base", Sign::Element("videotestsrc"), "the lab's camera"),
    ("gstreamer1.0-plugins-good", Sign::Element("rtph264pay"), "the lab's camera"),
    ("gstreamer1.0-plugins-bad", Sign::Element("h264parse"), "the lab's camera"),
    ("gstreamer1.0-plugins-ugly", Sign::Element("x264enc"), "the lab's camera"),
    ("gstreamer1.0-libav", Sign::Element("avenc_aac"), "the lab's camera: sound"),
    ("nodejs", Sign::Program("node"), "an HTTP/2 stack that is not ours; types of the page"),
    ("nghttp2-server", Sign::Program("nghttpd"), "another HTTP/2 stack that is not ours"),
    ("python3-h2", Sign::Python("h2"), "a third one"),
    ("npm", Sign::Program("npm"), "types of the page"),
];

/// Makes sure of everything that the tests need from the machine.
///
/// # Errors
/// With the command to type, when something is missing and cannot be installed from here.
pub fn ensure_debian_packages() -> anyhow::Result<()> {
    let missing = missing();
    if missing.is_empty() {
        println!("everything is there");
        return Ok(());
    }
    for (package, purpose) in &missing {
        println!("missing: {package:<28} {purpose}");
    }
    let packages: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    let install = format!("apt-get install --no-install-recommends --yes {}", packages.join(" "));
    let may_install = on_search_path("apt-get").is_some() && is_root();
    ensure!(may_install, "install what is missing and start again:\n\n    sudo {install}\n");

    run_quietly(Command::new("apt-get").args(["update"]))?;
    run_quietly(
        Command::new("apt-get")
            .args(["install", "--no-install-recommends", "--yes"])
            .args(&packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    let still_missing: Vec<&str> = self::missing().iter().map(|(package, _)| *package).collect();
    ensure!(
        still_missing.is_empty(),
        "still missing after `{install}`: {}. Look at what apt-get says.",
        still_missing.join(", ")
    );
    Ok(())
}

fn missing() -> Vec<(&'static str, &'static str)> {
    NEEDED
        .iter()
        .filter(|(_, sign, _)| !is_there(sign))
        .map(|(package, _, purpose)| (*package, *purpose))
        .collect()
}

fn is_there(sign: &Sign) -> bool {
    let succeeds = |program: &str, arguments: &[&str]| {
        let quiet =
            Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        quiet.is_ok_and(|status| status.success())
    };
    match sign {
        Sign::Program(name) => on_search_path(name).is_some(),
        Sign::File(path) => Path::new(path).exists(),
        Sign::Element(name) => succeeds("gst-inspect-1.0", &["--exists", name]),
        Sign::Python(what) if what.contains('(') => {
            succeeds("/usr/bin/python3", &["-c", &format!("import gi; {what}")])
        }
        Sign::Python(module) => succeeds("/usr/bin/python3", &["-c", &format!("import {module}")]),
    }
}

/// cargo-deny's program: the one on the search path if it is the pinned version, else one that is
/// installed once for all clones into the user's cache.
///
/// Built without optimisation: compiling it is most of what this costs, running it is a second.
///
/// # Errors
/// When it does not build.
pub fn cargo_deny() -> anyhow::Result<PathBuf> {
    let version = |program: &Path| {
        let output = Command::new(program).arg("--version").output().ok()?;
        String::from_utf8(output.stdout).ok()?.split_whitespace().nth(1).map(str::to_owned)
    };
    if let Some(program) = on_search_path("cargo-deny")
        && version(&program).as_deref() == Some(CARGO_DENY)
    {
        return Ok(program);
    }
    let place = cache().join(format!("cargo-deny-{CARGO_DENY}"));
    let program = place.join("bin/cargo-deny");
    if version(&program).as_deref() == Some(CARGO_DENY) {
        return Ok(program);
    }
    println!("installing cargo-deny {CARGO_DENY} into {}", place.display());
    run_quietly(
        Command::new("cargo")
            .args(["install", "--quiet", "--locked", "--debug", "--no-track"])
            .arg("--root")
            .arg(&place)
            .arg(format!("cargo-deny@{CARGO_DENY}"))
            .current_dir(env::temp_dir())
            // Its own small folder of intermediate files, thrown away by cargo; ours stays ours.
            .env_remove("CARGO_TARGET_DIR")
            .env("CARGO_PROFILE_DEV_DEBUG", "0"),
    )?;
    ensure!(version(&program).is_some(), "{} was installed and does not run", program.display());
    Ok(program)
}

/// live555's `openRTSP`, which Debian 12 does not have: the one on the search path, or Debian testing's, with the libraries
/// that it was built with, in a folder of its own. Nothing of it is installed on the machine.
///
/// # Errors
/// When this is no Debian, or its packages cannot be had.
pub fn ensure_open_rtsp() -> anyhow::Result<()> {
    let program = crate::root().join("target/tools/openRTSP");
    // Without arguments it shows how it is used; a shell says that it is not there.
    let shown = Command::new(&program).stdin(Stdio::null()).output();
    let runs = shown.is_ok_and(|shown| String::from_utf8_lossy(&shown.stderr).contains("Usage:"));
    if on_search_path("openRTSP").is_some() || runs {
        return Ok(());
    }
    let without = "install live555's openRTSP: Debian testing's package livemedia-utils could not be fetched";
    let place = cache().join("openrtsp");
    let (parts, archives, system) = (place.join("parts"), place.join("archives"), place.join("system"));
    // What an earlier release was made of does not go with this one.
    let _ = fs::remove_dir_all(&place);
    for folder in [&parts, &archives.join("partial"), &place.join("lists/partial"), &system] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    // The mirror that this machine uses anyway.
    let mut mirrors = Command::new("apt-get");
    mirrors.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]);
    let mirrors = mirrors.stdin(Stdio::null()).output().context(without)?.stdout;
    let mirrors = String::from_utf8(mirrors).context(without)?;
    let mirror = mirrors.lines().next();
    let mirror =
        mirror.with_context(|| format!("{without}: `apt-get update` first, no mirror of Debian is known"))?;
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(parts.join("testing.list"), format!("deb [signed-by={keys}] {mirror} testing main\n"))?;
    fs::write(place.join("status"), "")?;
    let state = |key: &str, file: &str| format!("Dir::{key}={}", place.join(file).display());
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        for setting in [
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            state("Etc::sourceparts", "parts"),
            state("State", ""),
            state("State::lists", "lists"),
            state("State::status", "status"),
            state("Cache", ""),
            state("Cache::archives", "archives"),
            "Debug::NoLocking=true".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        run_quietly(command.args(arguments)).context(without)
    };
    apt(&["update"])?;
    apt(&["install", "--yes", "--no-install-recommends", "--download-only", "livemedia-utils", "libc6"])?;
    for package in fs::read_dir(&archives)?.flatten().filter(|file| file.path().is_file()) {
        run_quietly(Command::new("dpkg-deb").arg("-x").arg(package.path()).arg(&system))?;
    }
    let libraries = fs::read_dir(system.join("usr/lib"))?.flatten().map(|folder| folder.path());
    let loader = libraries
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|folder| folder.flatten().map(|file| file.path()))
        .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux")))
        .context("libc6 without a loader")?;
    let library = loader.parent().context("a loader's folder")?;
    let script = format!(
        "#!/bin/sh\nexec {} --library-path {} {}/usr/bin/openRTSP \"$@\"\n",
        loader.display(),
        library.display(),
        system.display()
    );
    fs::create_dir_all(program.parent().context("target")?)?;
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    println!("openRTSP from Debian testing: {}", program.display());
    Ok(())
}

fn cache() -> PathBuf {
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(env::temp_dir)
        .join("homing")
}

fn is_root() -> bool {
    // The owner of our own process, without a library or unsafe code.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Where a program is. Debian keeps some of what only root needs outside a user's search path.
fn on_search_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Shows what a command said only when it failed.
fn run_quietly(command: &mut Command) -> anyhow::Result<()> {
    let name = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
