//! This machine: its addresses, and the service that is made of a role.
//!
//! Not here: whether an address can be used ([`homing_tunnel::setup`]).

use anyhow::{Context, ensure};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

/// The unit as it is in the repository and in packages.
pub(super) const UNIT: &str = include_str!("../../../../systemd/homing@.service");
/// Whom it runs as, for systemd-sysusers.
const USERS: &str = include_str!("../../../../systemd/homing.conf");
/// Where an administrator's units are.
pub(super) const UNITS: &str = "/etc/systemd/system";
const USER: &str = "homing";

/// IP addresses of this machine but loopback's and those of one link only, the one towards the Internet first.
pub(super) fn addresses() -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = outwards().into_iter().collect();
    // A routing table of the kernel's: a leaf, and on the next line what it is.
    let table = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut last: Option<Ipv4Addr> = None;
    for line in table.lines() {
        if let Some(leaf) = line.trim_start().strip_prefix("|-- ") {
            last = leaf.trim().parse().ok();
        } else if line.contains("host LOCAL") {
            all.extend(last.map(IpAddr::V4));
        }
    }
    let table = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    all.extend(table.lines().filter_map(|line| {
        let bits = u128::from_str_radix(line.split(' ').next()?, 16).ok()?;
        Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
    }));
    let of_one_link = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let mut seen = Vec::new();
    all.retain(|ip| {
        !ip.is_loopback() && !of_one_link(ip) && !seen.contains(ip) && {
            seen.push(*ip);
            true
        }
    });
    all
}

/// The address that connections to the Internet have; nothing is sent to find it.
fn outwards() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

/// Whether nobody on the Internet can dial it: of RFC 1918, 6598, 4193.
pub(super) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || (first == 100 && second & 0xC0 == 64)
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// Whether systemd runs this machine.
pub(super) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The role as a service.
pub(super) struct Service<'a> {
    /// Its units' folder; another one than [`UNITS`] is only written to.
    pub units: &'a Path,
    /// The configuration file.
    pub config: &'a Path,
    /// The role's data folder.
    pub data: &'a Path,
}

impl Service<'_> {
    /// Makes the user, installs the unit, gives both files to it, and starts it.
    ///
    /// # Errors
    /// Names the file or the command that failed.
    pub fn install(&self) -> anyhow::Result<PathBuf> {
        let unit = self.units.join("homing@.service");
        let program = std::env::current_exe().context("where this program is")?;
        fs::create_dir_all(self.units).with_context(|| format!("cannot make {}", self.units.display()))?;
        fs::write(&unit, self.unit(&program)?)
            .with_context(|| format!("cannot write {}: run it as root", unit.display()))?;
        if self.units != Path::new(UNITS) {
            return Ok(unit);
        }
        let users = Path::new("/etc/sysusers.d/homing.conf");
        fs::create_dir_all("/etc/sysusers.d").context("cannot make /etc/sysusers.d")?;
        fs::write(users, USERS).with_context(|| format!("cannot write {}", users.display()))?;
        run("systemd-sysusers", &[&users.display().to_string()])?;
        let (user, group) = ids()?;
        chown(self.config, Some(0), Some(group))
            .context("cannot give the configuration file to the service")?;
        fs::set_permissions(self.config, fs::Permissions::from_mode(0o640)).context("configuration file")?;
        give(self.data, user, group)?;
        // /var/lib/homing itself: were it root's, systemd would be the one to give it away.
        if let Some(above) = self.data.parent().filter(|above| *above == Path::new("/var/lib/homing")) {
            chown(above, Some(user), Some(group)).context("cannot give /var/lib/homing to the service")?;
        }
        run("systemctl", &["daemon-reload"])?;
        run("systemctl", &["enable", "homing@tunnel.service"])?;
        run("systemctl", &["restart", "homing@tunnel.service"])?;
        Ok(unit)
    }

    /// The unit for this program and these files.
    fn unit(&self, program: &Path) -> anyhow::Result<String> {
        let config = std::path::absolute(self.config).context("configuration file")?;
        let data = std::path::absolute(self.data).context("data folder")?;
        let quoted = |path: &Path| format!("\"{}\"", path.display().to_string().replace('%', "%%"));
        let start = format!("ExecStart={} %i --config {}", quoted(program), quoted(&config));
        let mut unit = String::new();
        for line in UNIT.lines() {
            unit.push_str(if line.starts_with("ExecStart=") { &start } else { line });
            unit.push('\n');
            if line.starts_with("StateDirectory=") && !data.starts_with("/var/lib/homing") {
                unit.push_str(&format!("ReadWritePaths={}\n", quoted(&data)));
            }
        }
        Ok(unit)
    }
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let said = Command::new(program).args(arguments).output();
    let said = said.with_context(|| format!("cannot start {program}"))?;
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "{program} {}: {}", arguments.join(" "), text.trim());
    Ok(())
}

/// User and group of the service.
fn ids() -> anyhow::Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
    let line = users.lines().find(|line| line.split(':').next() == Some(USER));
    let mut fields =
        line.with_context(|| format!("systemd-sysusers has not made the user {USER}"))?.split(':');
    let number = |field: Option<&str>| field.and_then(|text| text.parse().ok()).context("/etc/passwd");
    Ok((number(fields.nth(2))?, number(fields.next())?))
}

/// A folder and everything in it.
fn give(path: &Path, user: u32, group: u32) -> anyhow::Result<()> {
    let failed = || format!("cannot give {} to the service", path.display());
    std::os::unix::fs::lchown(path, Some(user), Some(group)).with_context(failed)?;
    if fs::symlink_metadata(path).with_context(failed)?.is_dir() {
        for entry in fs::read_dir(path).with_context(failed)? {
            give(&entry.with_context(failed)?.path(), user, group)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_names_this_program_and_these_files() {
        let service = Service {
            units: Path::new(UNITS),
            config: Path::new("/srv/a b/homing.toml"),
            data: Path::new("/srv/100%/tunnel"),
        };
        let unit = service.unit(Path::new("/opt/homing")).unwrap();
        assert!(
            unit.contains("\nExecStart=\"/opt/homing\" %i --config \"/srv/a b/homing.toml\"\n"),
            "{unit}"
        );
        assert!(unit.contains("\nReadWritePaths=\"/srv/100%%/tunnel\"\n"), "{unit}");
        let usual = Service { data: Path::new("/var/lib/homing/tunnel"), ..service };
        assert!(!usual.unit(Path::new("/opt/homing")).unwrap().contains("ReadWritePaths"));
    }

    #[test]
    fn who_can_be_dialled_from_the_internet() {
        for (ip, private) in [
            ("10.1.0.10", true),
            ("172.31.0.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("203.0.113.5", false),
            ("fd00::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_private(ip.parse().unwrap()), private, "{ip}");
        }
    }
}
